"""Forget images that were replaced: each change of dependencies leaves 9 GB in the registry and in containerd."""

from __future__ import annotations

import http.client
import json
import subprocess
from typing import Any

from localcluster import debian
from localcluster.components import registry as registry_command
from localcluster.console import say
from localcluster.gobuild import REGISTRY, binary
from localcluster.spec import LOOPBACK, REGISTRY_NAME, REGISTRY_PORT, Spec

_MANIFESTS = ", ".join(
    (
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)


def forget_replaced(cluster: Spec, built: set[str]) -> bool:
    """Of each repository in the registry that BUILT names an image of, forget the others; True if there were any. The
    registry and containerd must run, and no pod."""
    repositories = {name.rpartition(":")[0] for name in built}
    pushed = [name for name in _pushed() if name.rpartition(":")[0] in repositories]
    digests = {name: digest for name in pushed if (digest := _digest(name))}
    kept = {digest for name, digest in digests.items() if name in built}
    replaced = {name: digest for name, digest in digests.items() if digest not in kept}
    for name, digest in replaced.items():
        repository = name.removeprefix(f"{REGISTRY_NAME}/").rpartition(":")[0]
        _call("DELETE", f"/v2/{repository}/manifests/{digest}")
    _keep_in_containerd(cluster, repositories, kept)
    if replaced:
        say(f"Forgot {len(replaced)} replaced images.")
    return bool(replaced)


def collect_garbage(cluster: Spec) -> None:
    """Delete what no manifest needs; the registry must not run."""
    _, _, configuration = registry_command(cluster)
    collect = [str(binary(REGISTRY)), "garbage-collect", "--delete-untagged", configuration]
    subprocess.run(collect, capture_output=True, check=False, env=debian.environment())


def _pushed() -> list[str]:
    """The full names of all images in the registry."""
    repositories = _json("/v2/_catalog?n=1000").get("repositories") or []
    return [
        f"{REGISTRY_NAME}/{repository}:{tag}"
        for repository in repositories
        for tag in _json(f"/v2/{repository}/tags/list").get("tags") or []
    ]


def _digest(name: str) -> str | None:
    repository, _, tag = name.removeprefix(f"{REGISTRY_NAME}/").rpartition(":")
    headers, _ = _call("HEAD", f"/v2/{repository}/manifests/{tag}")
    return headers.get("Docker-Content-Digest")


def _keep_in_containerd(cluster: Spec, repositories: set[str], kept: set[str]) -> None:
    """Of REPOSITORIES keep only the images of the digests KEPT. An image has three names in containerd: by tag, by digest,
    and by the digest of its configuration, which does not tell the repository."""
    containerd = [str(debian.program("ctr")), f"--address={cluster.paths.containerd_socket}", "--namespace=k8s.io"]
    listed = subprocess.run([*containerd, "images", "list"], capture_output=True, text=True, check=False)
    rows = [(fields[0], fields[2]) for line in listed.stdout.splitlines()[1:] if len(fields := line.split()) > 2]
    ours = {digest for name, digest in rows if name.partition("@")[0].removesuffix(_tag(name)) in repositories}
    names = [name for name, digest in rows if digest in ours - kept]
    if names:
        subprocess.run([*containerd, "images", "remove", "--sync", *names], capture_output=True, check=False)


def _tag(name: str) -> str:
    last = name.partition("@")[0].rpartition("/")[2]
    return f":{last.partition(':')[2]}" if ":" in last else ""


def _json(path: str) -> dict[str, Any]:
    _, body = _call("GET", path)
    found = json.loads(body or b"{}")
    return found if isinstance(found, dict) else {}


def _call(verb: str, path: str) -> tuple[http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection(LOOPBACK, REGISTRY_PORT, timeout=30)
    try:
        connection.request(verb, path, headers={"Accept": _MANIFESTS})
        response = connection.getresponse()
        return response.headers, response.read()
    finally:
        connection.close()
