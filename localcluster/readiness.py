"""What "ready" means: not that processes run but that they answer."""

from __future__ import annotations

import http.client
import socket
import ssl
import struct
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from localcluster.addons import STORAGE_CLASS, kwok_node
from localcluster.api import Api
from localcluster.spec import API_SERVICE_ADDRESS, DNS_SERVICE_ADDRESS, LOOPBACK, NODE_NAME, REGISTRY_PORT, Spec

_TYPE_A, _CLASS_IN = 1, 1


@dataclass(frozen=True)
class Condition:
    """Something that must hold, in words and as a question."""

    what: str
    holds: Callable[[], bool]


def conditions(cluster: Spec) -> list[Condition]:
    """Everything that must hold before CLUSTER is ready."""
    api = Api(cluster.server, cluster.pki)
    found = [Condition("the API server", api.ready)]
    if cluster.size == "api":
        return found
    found += [
        Condition("the scheduler", lambda: _healthy(f"https://{LOOPBACK}:{cluster.ports['scheduler']}/healthz")),
        Condition(
            "the default service account", lambda: _exists(api, "/api/v1/namespaces/default/serviceaccounts/default")
        ),
    ]
    if cluster.kwok_nodes:
        found.append(Condition("the KWOK nodes", lambda: _node_ready(api, kwok_node(cluster.kwok_nodes - 1))))
    if cluster.has_node:
        found += [
            Condition(
                "the storage class", lambda: _exists(api, f"/apis/storage.k8s.io/v1/storageclasses/{STORAGE_CLASS}")
            ),
            Condition("the image registry", registry_answers),
            Condition(f"node {NODE_NAME}", lambda: _node_ready(api, NODE_NAME)),
            Condition("the cluster's DNS", _dns_answers),
        ]
    return found


def ready(cluster: Spec) -> bool:
    """Whether all of it holds now."""
    return all(condition.holds() for condition in conditions(cluster))


def registry_answers() -> bool:
    """Whether the node's image registry serves."""
    return _healthy(f"http://{LOOPBACK}:{REGISTRY_PORT}/v2/")


def _exists(api: Api, path: str) -> bool:
    return _quietly(lambda: api.get(path)) is not None


def _node_ready(api: Api, name: str) -> bool:
    found = _quietly(lambda: api.get(f"/api/v1/nodes/{name}"))
    return any(
        c["type"] == "Ready" and c["status"] == "True" for c in (found or {}).get("status", {}).get("conditions", [])
    )


def _healthy(url: str) -> bool:
    # These servers sign their certificates themselves; they are asked on loopback, and only whether they are well.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))

    def ask() -> bool:
        with opener.open(url, timeout=2) as response:
            return bool(response.status == http.client.OK)

    return _quietly(ask) or False


def _dns_answers() -> bool:
    """Ask for the API server's Service at the DNS Service's own address, as a pod would: proves kube-proxy as well."""
    question = b"".join(
        bytes([len(part)]) + part.encode() for part in ("kubernetes", "default", "svc", "cluster", "local")
    )
    query = struct.pack(">6H", 0x4B38, 0x0100, 1, 0, 0, 0) + question + b"\0" + struct.pack(">2H", _TYPE_A, _CLASS_IN)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(0.5)
        try:
            client.sendto(query, (DNS_SERVICE_ADDRESS, 53))
            reply = client.recv(512)
        except OSError:
            return False
    return socket.inet_aton(API_SERVICE_ADDRESS) in reply


def _quietly(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (OSError, http.client.HTTPException):
        return None
