"""Where everything lives: downloads and builds in the user's cache, each cluster in one state folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from localcluster.errors import NotReadyToStart

GO_SOURCES = Path(__file__).resolve().parent / "go"
REPOSITORY = Path(__file__).resolve().parent.parent

# The API server's own socket address must fit sockaddr_un (108 bytes); so must containerd's, which lies deepest.
_LONGEST_SOCKET = 107


def _xdg(variable: str, fallback: str) -> Path:
    configured = os.environ.get(variable, "")
    return Path(configured) if Path(configured).is_absolute() else Path.home() / fallback


def cache_root() -> Path:
    """Builds, tools and buildah's layers: all of it can be deleted at any time and comes back by itself."""
    return _xdg("XDG_CACHE_HOME", ".cache") / "finetune-operator" / "localcluster"


def clusters_root() -> Path:
    """One folder a cluster."""
    return _xdg("XDG_STATE_HOME", ".local/state") / "finetune-operator" / "clusters"


@dataclass(frozen=True)
class ClusterPaths:
    """The folders and files of one cluster. ``down`` deletes all of them but ``images``."""

    root: Path

    @classmethod
    def of(cls, name: str) -> ClusterPaths:
        """The paths of the cluster called NAME, whether it exists or not."""
        paths = cls(clusters_root() / name)
        if len(str(paths.containerd_socket)) > _LONGEST_SOCKET:
            raise NotReadyToStart(
                f"The state folder {paths.root} is too long a path for a Unix socket; set XDG_STATE_HOME to a shorter one."
            )
        return paths

    @property
    def name(self) -> str:
        """The cluster's name is its folder's name."""
        return self.root.name

    @property
    def description(self) -> Path:
        """What was asked for and which ports it got (see cluster.py)."""
        return self.root / "cluster.json"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.root / "kubeconfig"

    @property
    def logs(self) -> Path:
        """One log a component."""
        return self.root / "logs"

    @property
    def pids(self) -> Path:
        """One record a running component."""
        return self.root / "pids"

    @property
    def pki(self) -> Path:
        """Certificates, keys and the token file."""
        return self.root / "pki"

    @property
    def config(self) -> Path:
        """Configuration files and the components' own kubeconfigs."""
        return self.root / "config"

    @property
    def etcd(self) -> Path:
        """The data base."""
        return self.root / "etcd"

    @property
    def kubelet(self) -> Path:
        """The kubelet's root: the volumes of pods are mounted here."""
        return self.root / "kubelet"

    @property
    def pod_logs(self) -> Path:
        """What containers print."""
        return self.root / "pod-logs"

    @property
    def volumes(self) -> Path:
        """Folders behind PersistentVolumes of the StorageClasses."""
        return self.root / "volumes"

    @property
    def run(self) -> Path:
        """Sockets and containerd's run-time state."""
        return self.root / "run"

    @property
    def containerd_socket(self) -> Path:
        """Where containerd listens."""
        return self.run / "containerd.sock"

    @property
    def containerd_ttrpc_socket(self) -> Path:
        """Where containerd's shims report; containerd derives this name from the other."""
        return self.run / "containerd.sock.ttrpc"

    @property
    def images(self) -> Path:
        """The registry's and containerd's image content: outlives ``down`` so that the next ``up`` pulls in seconds."""
        return self.root / "images"

    @property
    def containerd(self) -> Path:
        """containerd's persistent root."""
        return self.images / "containerd"

    @property
    def registry(self) -> Path:
        """The registry's storage."""
        return self.images / "registry"
