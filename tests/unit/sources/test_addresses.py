"""Which addresses nothing is downloaded from, however they are written, and that a connection is what is checked."""

from __future__ import annotations

import socket

import pytest
from finetune_trainer.sources import addresses

ADDRESSES = {
    "169.254.169.254": True,
    "169.254.0.1": True,
    "fe80::1%eth0": True,
    "::ffff:169.254.169.254": True,
    "::a9fe:a9fe": True,
    "64:ff9b::a9fe:a9fe": True,
    "2002:a9fe:a9fe::": True,
    "fd00:ec2::254": True,
    "100.100.100.200": True,
    "168.63.129.16": True,
    "224.0.0.1": True,
    "ff02::1": True,
    "0.0.0.0": True,
    "0.1.2.3": True,
    "::": True,
    "::ffff:0.0.0.0": True,
    "255.255.255.255": True,
    "127.0.0.1": False,
    "::1": False,
    "10.96.0.10": False,
    "192.168.1.4": False,
    "100.64.0.1": False,
    "fd00::10": False,
    "8.8.8.8": False,
    "2606:4700::1111": False,
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_kind(address):
    assert (addresses.kind_of(address) is not None) == ADDRESSES[address]


@pytest.mark.parametrize("written", ["169.254.169.254", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376"])
def test_connections_are_refused_while_it_watches_and_only_then(written):
    with addresses.watched(), pytest.raises(addresses.Forbidden, match=r"169\.254\.169\.254"):
        socket.create_connection((written, 80), timeout=0.01)
    with socket.socket() as plain:
        plain.setblocking(False)
        with pytest.raises(OSError):
            plain.connect(("169.254.169.254", 9))


def test_what_a_proxy_would_connect_to():
    with pytest.raises(addresses.Forbidden):
        addresses.check_host("169.254.169.254")
    addresses.check_host("127.0.0.1")
    addresses.check_host("only-the-proxy-knows.invalid")
