"""The keys of one cluster: which there are and where they lie. Making them is certs.py, which loads slowly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FRONT_PROXY = "front-proxy-client"

# user -> groups. Kubernetes binds its own users to their roles; the last two are bound in addons.py.
USERS: dict[str, tuple[str, ...]] = {
    "admin": ("system:masters",),
    "system:kube-controller-manager": (),
    "system:kube-scheduler": (),
    "system:kube-proxy": (),
    "system:node:node-1": ("system:nodes",),
    "localcluster:coredns": (),
    "localcluster:provisioner": (),
}


@dataclass(frozen=True)
class KeyPair:
    """A certificate (or public key) and its private key."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class Pki:
    """The files of a cluster's keys."""

    folder: Path

    @property
    def ca(self) -> KeyPair:
        """The authority that signs all the others."""
        return self._pair("ca")

    @property
    def serving(self) -> KeyPair:
        """What the API server and the kubelet show to their clients."""
        return self._pair("serving")

    @property
    def kubelet_client(self) -> KeyPair:
        """What the API server shows to the kubelet, for logs and exec."""
        return self._pair("kubelet-client")

    @property
    def front_proxy(self) -> KeyPair:
        """What the API server shows to aggregated API servers."""
        return self._pair("front-proxy")

    @property
    def service_account(self) -> KeyPair:
        """What signs the tokens of pods; the first file is a bare public key."""
        return self._pair("service-account")

    @property
    def tokens(self) -> Path:
        """The API server's list of static tokens."""
        return self.folder / "tokens.csv"

    def token(self, user: str) -> str:
        """The token of USER."""
        rows = (line.split(",") for line in self.tokens.read_text().splitlines())
        return next(token for token, name, *_ in rows if name == user)

    def _pair(self, name: str) -> KeyPair:
        return KeyPair(self.folder / f"{name}.crt", self.folder / f"{name}.key")
