"""What this machine must have before anything starts: one sentence for each thing that is missing."""

from __future__ import annotations

import ipaddress
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from localcluster import debian, pypi, spec
from localcluster.errors import NotReadyToStart
from localcluster.gobuild import OF_SIZE
from localcluster.paths import ClusterPaths, clusters_root
from localcluster.ports import is_free

_GIB = 1024**3
_DISK_GIB = {"api": 1, "control": 1, "node": 25}
_BUILD_DISK_GIB = 6
# Once the images are there, what is left is for volumes and new layers.
_WARM_NODE_GIB = 10
_CONTROLLERS = ("cpu", "memory", "pids")


def check(size: str, name: str, wanted_port: int | None) -> None:
    """Raise with everything that stands in the way of a new cluster of SIZE."""
    problems = list(_machine(size, name))
    if wanted_port is not None and not is_free(wanted_port):
        problems.append(f"Port {wanted_port} on loopback is in use; choose another with --port.")
    if size == "node":
        problems += _node(name)
    if problems:
        raise NotReadyToStart(*problems)


def _machine(size: str, name: str) -> Iterator[str]:
    if sys.platform != "linux":
        yield "The local cluster runs on Linux alone; elsewhere use your own cluster with CLUSTER=current."
        return
    unbuilt = [program.name for program in OF_SIZE[size] if not program.built]
    if unbuilt and not shutil.which("go") and pypi.installer() is None:
        yield f"Building {', '.join(unbuilt)} needs Go, uv or pip; install one of them."
    needed = _DISK_GIB[size] + (_BUILD_DISK_GIB if unbuilt else 0)
    if size == "node" and ClusterPaths.of(name).images.exists():
        needed = _WARM_NODE_GIB
    folder = _existing(clusters_root())
    free = shutil.disk_usage(folder).free / _GIB
    if free < needed:
        yield f"Size {size} needs {needed} GiB of free disk and {folder} has {free:.0f}; free some, or set XDG_STATE_HOME."


def _node(name: str) -> Iterator[str]:
    if os.geteuid() != 0:
        yield "Size node needs root (namespaces, mounts, cgroups); run it as root, or use --size control."
    if missing := debian.missing():
        yield debian.advice(missing)
    if lacking := _lacking_cgroups():
        yield f"The cgroup controllers {', '.join(lacking)} are not mounted below /sys/fs/cgroup; mount them."
    for other in running_nodes(name):
        yield f"The cluster {other!r} already runs a node here; take it down first: python -m localcluster down --name {other}"
    if not is_free(spec.KUBELET_PORT, "0.0.0.0"):
        yield f"Port {spec.KUBELET_PORT} is in use, by another kubelet it seems; stop it."
    if not is_free(spec.REGISTRY_PORT):
        yield f"Port {spec.REGISTRY_PORT} on loopback is in use and the image registry needs it; stop what listens there."
    if device := _device_of_pod_subnet():
        yield f"The network device {device} already uses {spec.POD_SUBNET}, which the pods need; remove it."


def running_nodes(name: str) -> Iterable[str]:
    """Other clusters of this user that have a node: a machine can hold one."""
    for other in spec.load_all():
        if other.has_node and other.name != name and any(other.paths.pids.glob("*.json")):
            yield other.name


def _lacking_cgroups() -> list[str]:
    root = Path("/sys/fs/cgroup")
    unified = root / "cgroup.controllers"
    mounted = unified.read_text().split() if unified.exists() else [entry.name for entry in root.glob("*")]
    return [controller for controller in _CONTROLLERS if controller not in mounted]


def _device_of_pod_subnet() -> str | None:
    """The device, other than our own bridge, that has a route into the pods' addresses; default routes do not count."""
    pods = ipaddress.ip_network(spec.POD_SUBNET)
    for line in Path("/proc/net/route").read_text().splitlines()[1:]:
        fields = line.split()
        device, destination, mask = fields[0], _address(fields[1]), _address(fields[7])
        route = ipaddress.ip_network(f"{destination}/{mask}", strict=False)
        if route.prefixlen and device != spec.BRIDGE and route.overlaps(pods):
            return device
    return None


def _address(hexadecimal: str) -> ipaddress.IPv4Address:
    """The kernel's notation: the four bytes as a little-endian number."""
    return ipaddress.IPv4Address(int.from_bytes(bytes.fromhex(hexadecimal), "little"))


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder
