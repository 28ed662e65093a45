"""The image of a pod's sandbox: one static program, packed here so that no registry outside is needed."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from typing import Any

from localcluster import debian
from localcluster.gobuild import PAUSE, binary
from localcluster.spec import SANDBOX_IMAGE, Spec


def import_image(cluster: Spec) -> bool:
    """Give containerd the image; False where containerd does not answer yet."""
    containerd = [str(debian.program("ctr")), f"--address={cluster.paths.containerd_socket}", "--namespace=k8s.io"]
    listed = subprocess.run([*containerd, "images", "list", "-q"], capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        return False
    if SANDBOX_IMAGE in listed.stdout.split():
        return True
    imported = subprocess.run(
        [*containerd, "images", "import", "-"], input=_archive(), capture_output=True, check=False
    )
    return imported.returncode == 0


def _archive() -> bytes:
    """The format of ``docker save``: a manifest, a configuration, and one layer with one file."""
    layer = _tar({"pause": (binary(PAUSE).read_bytes(), 0o755)})
    configuration = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": ["/pause"], "User": "65535:65535"},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        }
    ).encode()
    manifest: list[dict[str, Any]] = [{"Config": "config.json", "RepoTags": [SANDBOX_IMAGE], "Layers": ["layer.tar"]}]
    return _tar(
        {
            "config.json": (configuration, 0o644),
            "layer.tar": (layer, 0o644),
            "manifest.json": (json.dumps(manifest).encode(), 0o644),
        }
    )


def _tar(files: dict[str, tuple[bytes, int]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, (content, mode) in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
