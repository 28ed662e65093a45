"""Pretend GPUs: the node's capacity says what the test wants; the kubelet keeps what it does not manage itself."""

from __future__ import annotations

from localcluster import spec
from localcluster.api import Api
from localcluster.errors import NotReadyToStart
from localcluster.spec import NODE_NAME, Spec

RESOURCE = "nvidia.com/gpu"


def pretend(cluster: Spec, count: int) -> None:
    """Give the node COUNT GPUs that do not exist; pods that ask for them are scheduled and see none."""
    if not cluster.has_node:
        raise NotReadyToStart(
            f"Cluster {cluster.name} has size {cluster.size} and no node; make Node objects with GPUs."
        )
    amounts = {RESOURCE: str(count)}
    change = {"status": {"capacity": amounts, "allocatable": amounts}}
    Api(cluster.server, cluster.pki).merge(f"/api/v1/nodes/{NODE_NAME}/status", change)


def pretend_in(name: str, count: int) -> None:
    """The same for the cluster called NAME."""
    cluster = spec.load(name)
    if cluster is None:
        raise NotReadyToStart(f"There is no cluster {name}; start one: python -m localcluster up --size node")
    pretend(cluster, count)
