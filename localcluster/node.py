"""What the machine lends to a cluster with a node, and how it gets all of it back."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable
from pathlib import Path

from localcluster import components, debian, sandbox
from localcluster.api import wait_until
from localcluster.console import say
from localcluster.gobuild import KUBE, binary
from localcluster.processes import Registry, end_matching
from localcluster.spec import BRIDGE, NODE_ADDRESS, POD_SUBNET, Spec

_CGROUPS = Path("/sys/fs/cgroup")
_NETWORK_NAMESPACES = Path("/run/netns")
_LOG_LINKS = Path("/var/log/containers")
_CONTAINERD_ANSWERS_S = 20.0
_FENCE = "localcluster"
_KUBELET_SOCKET = Path("/var/lib/kubelet/device-plugins/kubelet.sock")
# Places that containerd, its network plugins and the kubelet do not let us choose; each goes if it is empty.
_FIXED_FOLDERS = tuple(
    Path(folder)
    for folder in (
        "/run/containerd/runc/k8s.io",
        "/run/containerd/runc",
        "/run/containerd/s",
        "/run/containerd",
        "/var/lib/cni/results",
        "/var/lib/cni",
        "/var/lib/kubelet/device-plugins",
        "/var/lib/kubelet",
    )
)


def prepare_network(cluster: Spec) -> None:
    """Make the bridge with the node's address before the kubelet and the API server want it."""
    for folder in (cluster.paths.run, cluster.paths.volumes, cluster.paths.pod_logs):
        folder.mkdir(parents=True, exist_ok=True)
    if not Path(f"/sys/class/net/{BRIDGE}").exists():
        _run("ip", "link", "add", BRIDGE, "type", "bridge")
    prefix = POD_SUBNET.partition("/")[2]
    _run("ip", "address", "replace", f"{NODE_ADDRESS}/{prefix}", "dev", BRIDGE)
    _run("ip", "link", "set", BRIDGE, "up")
    _keep_pods_inside()


def _keep_pods_inside() -> None:
    """Pods reach each other and this machine. What they send elsewhere is refused at once; without this it would leave
    with an address that nobody can answer, and callers would hang."""
    rule = f'iifname "{BRIDGE}" oifname != "{BRIDGE}" reject with icmpx type admin-prohibited'
    table = f"table inet {_FENCE}"
    rules = [
        table,
        f"delete {table}",
        f"{table} {{",
        "  chain forward {",
        "    type filter hook forward priority 0; policy accept;",
        f"    {rule}",
        "  }",
        "}",
    ]
    subprocess.run(
        [debian.program("nft"), "--file", "-"],
        input="\n".join(rules) + "\n",
        text=True,
        check=True,
    )


def stop_pods(cluster: Spec, running: Registry) -> None:
    """End all pods through containerd, so that it gives back namespaces, addresses and mounts itself."""
    if not running.alive("containerd"):
        if not cluster.paths.containerd.exists() or not cluster.paths.config.exists():
            return
        # It died; its pods did not.
        command = components.command(cluster, "containerd")
        running.start("containerd", command, debian.program("containerd"), debian.environment())
    endpoint = f"--endpoint=unix://{cluster.paths.containerd_socket}"
    last = ""

    def stopped() -> bool:
        nonlocal last
        done = subprocess.run([binary(KUBE), "stop-pods", endpoint], capture_output=True, text=True, check=False)
        last = done.stderr.strip()
        return done.returncode == 0

    if not wait_until(stopped, _CONTAINERD_ANSWERS_S, interval=0.3):
        say(f"containerd did not end all pods ({last[-200:]}); ending them without it.")


def clean(cluster: Spec) -> None:
    """Take back what is left when all servers have stopped. Everything here may be missing already."""
    end_matching(str(cluster.paths.containerd_socket))
    _unmount_below(cluster.paths.root)
    _remove_network_namespaces()
    _run("ip", "link", "delete", BRIDGE, may_fail=True)
    for table in (("inet", _FENCE), ("ip", "kube-proxy"), ("ip6", "kube-proxy")):
        _run("nft", "delete", "table", *table, may_fail=True)
    _remove_cgroups()
    _remove_log_links(cluster.paths.pod_logs)
    _quietly(_KUBELET_SOCKET.unlink)
    for folder in _FIXED_FOLDERS:
        _quietly(folder.rmdir)


def _unmount_below(folder: Path) -> None:
    """Unmount everything below FOLDER, the deepest first."""
    mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    below = [place.replace("\\040", " ") for place in mounted if place.startswith(f"{folder}/")]
    for place in sorted(below, key=len, reverse=True):
        if not _run("umount", place, may_fail=True):
            _run("umount", "--lazy", place, may_fail=True)


def _remove_network_namespaces() -> None:
    """Those that hold an address of the pods' subnet: none is left where containerd ended the pods itself."""
    network = POD_SUBNET.rpartition(".")[0] + "."
    for namespace in _NETWORK_NAMESPACES.glob("cni-*"):
        addresses = _output("ip", "-n", namespace.name, "-4", "address")
        if f"inet {network}" in addresses:
            _run("ip", "netns", "delete", namespace.name, may_fail=True)


def _remove_cgroups() -> None:
    """The kubelet's cgroups are empty folders once nothing runs in them; rmdir refuses any that is not."""
    for tree in {*_CGROUPS.glob("kubepods"), *_CGROUPS.glob("*/kubepods")}:
        folders = [folder for folder in tree.rglob("*") if folder.is_dir()]
        for folder in sorted(folders, key=lambda found: len(found.parts), reverse=True):
            _quietly(folder.rmdir)
        _quietly(tree.rmdir)


def _remove_log_links(pod_logs: Path) -> None:
    """The kubelet links each container's log from a place that it does not let us choose."""
    for link in _LOG_LINKS.glob("*.log"):
        if link.is_symlink() and link.readlink().is_relative_to(pod_logs):
            _quietly(link.unlink)
    _quietly(_LOG_LINKS.rmdir)


def import_sandbox_image(cluster: Spec) -> bool:
    """Give containerd the image that every pod needs; False where containerd does not answer yet."""
    return sandbox.import_image(cluster)


def _quietly(act: Callable[[], object]) -> None:
    with contextlib.suppress(OSError):
        act()


def _run(program: str, *arguments: str, may_fail: bool = False) -> bool:
    done = subprocess.run([debian.program(program), *arguments], capture_output=True, check=not may_fail)
    return done.returncode == 0


def _output(program: str, *arguments: str) -> str:
    return subprocess.run([debian.program(program), *arguments], capture_output=True, text=True, check=False).stdout
