"""What a cluster is: its size, name and ports. Written down at the first ``up``; everything else follows from it."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

from localcluster.errors import NotReadyToStart
from localcluster.paths import ClusterPaths, clusters_root
from localcluster.pki import Pki

SIZES = ("api", "control", "node")
LOOPBACK = "127.0.0.1"

# The node's own network: a bridge that holds its pods and the servers that pods call.
BRIDGE = "finetune0"
NODE_NAME = "node-1"
NODE_ADDRESS = "10.244.0.1"
POD_SUBNET = "10.244.0.0/24"
SERVICE_SUBNET = "10.96.0.0/16"
API_SERVICE_ADDRESS = "10.96.0.1"
DNS_SERVICE_ADDRESS = "10.96.0.10"
KUBELET_PORT = 10250
SANDBOX_IMAGE = "localhost/pause:1"
REGISTRY_PORT = 5000
REGISTRY_NAME = f"localhost:{REGISTRY_PORT}"

_PORTS = {
    "api": ("api", "etcd", "etcd-peer"),
    "control": ("api", "etcd", "etcd-peer", "controller-manager", "scheduler"),
    "node": (
        "api",
        "etcd",
        "etcd-peer",
        "controller-manager",
        "scheduler",
        "kubelet-healthz",
        "proxy-healthz",
        "proxy-metrics",
        "dns-ready",
    ),
}
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?")


@dataclass(frozen=True)
class Spec:
    """A cluster as it was asked for, and the ports it got."""

    name: str
    size: str
    boot: str
    ports: dict[str, int]
    extra_flags: dict[str, list[str]] = field(default_factory=dict)
    kwok_nodes: int = 0
    """Nodes that KWOK plays, in a cluster of size control."""

    @property
    def has_node(self) -> bool:
        """Whether pods really run."""
        return self.size == "node"

    @property
    def address(self) -> str:
        """Where the API server listens: pods must reach it too, so a cluster with a node has it on the bridge."""
        return NODE_ADDRESS if self.has_node else LOOPBACK

    @property
    def server(self) -> str:
        """The API server's URL."""
        return f"https://{self.address}:{self.ports['api']}"

    @property
    def paths(self) -> ClusterPaths:
        """Its folders."""
        return ClusterPaths.of(self.name)

    @property
    def pki(self) -> Pki:
        """Its keys."""
        return Pki(self.paths.pki)

    def save(self) -> None:
        """Write it down."""
        self.paths.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.paths.description.write_text(json.dumps(asdict(self), indent=2))


def port_names(size: str) -> tuple[str, ...]:
    """What a cluster of SIZE needs ports for."""
    return _PORTS[size]


def check_name(name: str) -> None:
    """Names become folders and contexts."""
    if not _NAME.fullmatch(name):
        raise NotReadyToStart(f"{name!r} is no cluster name; use up to 32 lower-case letters, digits and dashes.")


def load(name: str) -> Spec | None:
    """The cluster called NAME, or None where there is none."""
    return _read(ClusterPaths.of(name).description)


def load_all() -> list[Spec]:
    """Every cluster of this user."""
    return [spec for file in sorted(clusters_root().glob("*/cluster.json")) if (spec := _read(file))]


def _read(file: Path) -> Spec | None:
    try:
        return Spec(**json.loads(file.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
