"""Ports on loopback: free ones for a new cluster, so that many run side by side."""

from __future__ import annotations

import socket
import zlib
from collections.abc import Iterable

from localcluster.errors import ClusterError

# Below the kernel's ephemeral range and the NodePort range, so that no outgoing connection takes one meanwhile.
_FIRST, _LAST = 20000, 29999


def is_free(port: int, address: str = "127.0.0.1") -> bool:
    """Whether a server could listen on PORT now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def choose(cluster: str, names: Iterable[str], taken: set[int]) -> dict[str, int]:
    """A free port for each of NAMES. The search starts at a place that depends on the cluster's name, so ports seldom
    change from one ``up`` to the next. TAKEN holds those of other clusters, which may be down for a moment."""
    wanted = list(names)
    span = _LAST - _FIRST + 1
    start = zlib.crc32(cluster.encode()) % span
    chosen: dict[str, int] = {}
    for offset in range(span):
        port = _FIRST + (start + offset) % span
        if len(chosen) == len(wanted):
            break
        if port not in taken and is_free(port):
            chosen[wanted[len(chosen)]] = port
    if len(chosen) < len(wanted):
        raise ClusterError(f"No {len(wanted)} free ports between {_FIRST} and {_LAST} on loopback.")
    return chosen
