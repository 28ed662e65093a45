"""Objects that a cluster has from its first second: roles of our own components, the DNS Service, storage classes."""

from __future__ import annotations

from typing import Any

from localcluster.api import Api, Object
from localcluster.components import KWOK_ANNOTATION
from localcluster.pki import USERS
from localcluster.spec import DNS_SERVICE_ADDRESS, NODE_ADDRESS, Spec

STORAGE_CLASS = "local"
_LABELS = {"app.kubernetes.io/managed-by": "localcluster"}
_RBAC = "/apis/rbac.authorization.k8s.io/v1"
_PROVISIONER = "finetune.dev/local"

_KWOK_SIZE = {
    "cpu": "128",
    "memory": "2Ti",
    "ephemeral-storage": "8Ti",
    "pods": "1000",
    "nvidia.com/gpu": "8",
}
_READ = ["get", "list", "watch"]
_RULES: dict[str, list[dict[str, list[str]]]] = {
    "localcluster:coredns": [
        {"apiGroups": [""], "resources": ["services", "pods", "namespaces", "nodes"], "verbs": _READ},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": _READ},
    ],
    "localcluster:provisioner": [
        {
            "apiGroups": [""],
            "resources": ["persistentvolumes"],
            "verbs": [*_READ, "create", "patch", "update", "delete"],
        },
        {"apiGroups": [""], "resources": ["persistentvolumeclaims"], "verbs": [*_READ, "update", "patch"]},
        {"apiGroups": [""], "resources": ["nodes"], "verbs": _READ},
        {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch", "update"]},
        {"apiGroups": ["storage.k8s.io"], "resources": ["storageclasses"], "verbs": _READ},
    ],
}


def apply(api: Api, spec: Spec) -> None:
    """Create or repair the objects of a cluster with nodes; other clusters have none."""
    for number in range(spec.kwok_nodes):
        _kwok_node(api, kwok_node(number))
    if not spec.has_node:
        return
    for user, rules in _RULES.items():
        _role(api, user, rules)
    for name, mode in ((STORAGE_CLASS, "Immediate"), (f"{STORAGE_CLASS}-wait", "WaitForFirstConsumer")):
        _storage_class(api, name, mode)
    _dns_service(api)


def kwok_node(number: int) -> str:
    """The name of a node that KWOK plays."""
    return f"kwok-{number}"


def _kwok_node(api: Api, name: str) -> None:
    path = f"/api/v1/nodes/{name}"
    if api.get(path) is not None:
        return
    node = _object("v1", "Node", name)
    node["metadata"]["annotations"] = {KWOK_ANNOTATION: "fake"}
    node["metadata"]["labels"] |= {"kubernetes.io/hostname": name}
    api.apply(path, node)
    # KWOK adds conditions and addresses.
    api.merge(f"{path}/status", {"status": {"capacity": _KWOK_SIZE, "allocatable": _KWOK_SIZE}})


def _role(api: Api, user: str, rules: list[dict[str, list[str]]]) -> None:
    if user not in USERS:
        raise KeyError(user)
    api.apply(f"{_RBAC}/clusterroles/{user}", _object("rbac.authorization.k8s.io/v1", "ClusterRole", user, rules=rules))
    binding = _object(
        "rbac.authorization.k8s.io/v1",
        "ClusterRoleBinding",
        user,
        roleRef={"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": user},
        subjects=[{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    )
    api.apply(f"{_RBAC}/clusterrolebindings/{user}", binding)


def _storage_class(api: Api, name: str, mode: str) -> None:
    wanted = _object(
        "storage.k8s.io/v1",
        "StorageClass",
        name,
        provisioner=_PROVISIONER,
        reclaimPolicy="Delete",
        volumeBindingMode=mode,
    )
    if name == STORAGE_CLASS:
        wanted["metadata"]["annotations"] = {"storageclass.kubernetes.io/is-default-class": "true"}
    api.apply(f"/apis/storage.k8s.io/v1/storageclasses/{name}", wanted)


def _dns_service(api: Api) -> None:
    """CoreDNS is a process of the node, not a pod, so its Service names the endpoint by hand."""
    ports = [{"name": f"dns-{p.lower()}", "port": 53, "protocol": p} for p in ("UDP", "TCP")]
    service = _object("v1", "Service", "kube-dns", spec={"clusterIP": DNS_SERVICE_ADDRESS, "ports": ports})
    api.apply("/api/v1/namespaces/kube-system/services/kube-dns", service)
    endpoints = _object(
        "discovery.k8s.io/v1",
        "EndpointSlice",
        "kube-dns",
        addressType="IPv4",
        endpoints=[{"addresses": [NODE_ADDRESS], "conditions": {"ready": True}}],
        ports=ports,
    )
    endpoints["metadata"]["labels"] = {**_LABELS, "kubernetes.io/service-name": "kube-dns"}
    api.apply("/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices/kube-dns", endpoints)


def _object(version: str, kind: str, name: str, **fields: Any) -> Object:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "labels": dict(_LABELS)}, **fields}
