"""What size node takes from the distribution: the container run-time, its network plugins and the network tools."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from localcluster.console import progress
from localcluster.errors import ClusterError, NotReadyToStart

CNI_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))


@dataclass(frozen=True)
class Need:
    """Something that must be on this machine, and the Debian package that brings it."""

    program: str
    package: str

    @property
    def met(self) -> bool:
        """Whether it is here."""
        if self.package == "containernetworking-plugins":
            return any((folder / self.program).exists() for folder in CNI_FOLDERS)
        return shutil.which(self.program, path=_path()) is not None


RUNTIME = (
    Need("containerd", "containerd"),
    Need("ctr", "containerd"),
    Need("runc", "runc"),
    Need("bridge", "containernetworking-plugins"),
    Need("ip", "iproute2"),
    Need("nft", "nftables"),
    # kube-proxy and the kubelet look for it even where they use nftables.
    Need("iptables", "iptables"),
)
IMAGES = (Need("buildah", "buildah"), Need("mmdebstrap", "mmdebstrap"))


def missing(needs: tuple[Need, ...] = RUNTIME) -> list[Need]:
    """Those of NEEDS that are not met."""
    return [need for need in needs if not need.met]


def advice(needs: list[Need]) -> str:
    """What a person should do about NEEDS."""
    programs = ", ".join(need.program for need in needs)
    return f"These programs are missing: {programs}; install them: apt-get install {' '.join(_packages(needs))}"


def install_missing(needs: tuple[Need, ...] = RUNTIME) -> None:
    """Install what is missing where that is possible; where it is not, preflight says what to do."""
    lacking = missing(needs)
    if not lacking or os.geteuid() != 0 or not shutil.which("apt-get"):
        return
    packages = _packages(lacking)
    with progress(f"Installing Debian packages: {' '.join(packages)}"):
        _apt("update", "--quiet")
        _apt("install", "--yes", "--quiet", "--no-install-recommends", *packages)


def cni_folder() -> Path:
    """Where the network plugins are."""
    return next((folder for folder in CNI_FOLDERS if (folder / "bridge").exists()), CNI_FOLDERS[0])


def program(name: str) -> Path:
    """The file of a program that preflight has seen."""
    found = shutil.which(name, path=_path())
    if found is None:
        raise NotReadyToStart(f"The program {name} is missing; run: python -m localcluster up --size node")
    return Path(found)


def environment() -> dict[str, str]:
    """What servers and tools run with. A proxy in the environment is for the world outside, which none of them calls."""
    inherited = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    return {**inherited, "PATH": _path(), "OTEL_TRACES_EXPORTER": "none"}


def _packages(needs: list[Need]) -> list[str]:
    return sorted({need.package for need in needs})


def _apt(*arguments: str) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(["apt-get", *arguments], capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise ClusterError(f"apt-get {' '.join(arguments)} failed: {done.stderr.strip()[-600:]}")


def _path() -> str:
    """Programs of the administrator lie where a plain user's PATH does not look."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])
