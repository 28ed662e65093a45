"""Refuses connections to addresses that no model or data set lies at: a cloud's metadata service above all.

Names lie: one may resolve to a harmless address when it is checked and to another when it is used, and any server may
redirect anywhere. So the address is checked where the operating system is asked to connect, for every client library
alike, by an audit hook (PEP 578).
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

METADATA = frozenset(
    ipaddress.ip_address(text)
    for text in ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192")
)
"""Metadata services of clouds that are not on a link-local address."""
_THIS_NETWORK = ipaddress.ip_network("0.0.0.0/8")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_COMPATIBLE = ipaddress.ip_network("::/96")

_watchers = 0
_hooked = False
_lock = threading.Lock()


class Forbidden(Exception):
    """A connection to `address` was refused; `kind` says why in a few words."""

    def __init__(self, address: str, kind: str) -> None:
        super().__init__(f"{address} is {kind}")
        self.address = address
        self.kind = kind


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """While this holds, every connection of this process to a forbidden address raises Forbidden instead."""
    global _watchers, _hooked
    with _lock:
        if not _hooked:
            sys.addaudithook(_audit)  # there is no way to take it away again
            _hooked = True
        _watchers += 1
    try:
        yield
    finally:
        with _lock:
            _watchers -= 1


def check_host(host: str) -> None:
    """Raises Forbidden where `host` is, or resolves to nothing but, forbidden addresses.

    For what a proxy connects to in our place: there is no address to check but the one that is seen from here.
    """
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return  # names that only the proxy knows
    kinds = [(address, kind_of(address)) for address in sorted(found)]
    if kinds and all(kind for _, kind in kinds):
        raise Forbidden(kinds[0][0], kinds[0][1] or "")


def kind_of(address: str) -> str | None:
    """Why nothing is downloaded from an IP address, or None. IPv4 inside IPv6 (mapped, 6to4, Teredo, NAT64) counts as itself."""
    try:
        ip = ipaddress.ip_address(address.split("%", 1)[0])
    except ValueError:
        return None
    for form in _forms(ip):
        if form.is_link_local or form in METADATA:
            return "an address of cloud metadata or of the local link"
        if form.is_multicast:
            return "a multicast address"
        if form.is_unspecified or form in _THIS_NETWORK or str(form) == "255.255.255.255":
            return "no address of a server"
    return None


def _forms(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> Iterator[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    if not isinstance(ip, ipaddress.IPv6Address) or not ip.is_loopback:
        yield ip
    if isinstance(ip, ipaddress.IPv6Address) and not ip.is_loopback:
        for inner in (ip.ipv4_mapped, ip.sixtofour, ip.teredo[1] if ip.teredo else None):
            if inner is not None:
                yield inner
        if ip in _NAT64 or ip in _COMPATIBLE:
            yield ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "socket.connect" or not _watchers:
        return
    address = arguments[1]
    if isinstance(address, tuple) and isinstance(address[0], str) and (kind := kind_of(address[0])):
        raise Forbidden(address[0], kind)
