"""What a machine lends to a cluster with a node, and how it gets all of it back."""

from __future__ import annotations

from localcluster.processes import Registry
from localcluster.spec import Spec


def prepare_network(cluster: Spec) -> None: ...
def import_sandbox_image(cluster: Spec) -> bool:
    return True


def stop_pods(cluster: Spec, running: Registry) -> None: ...
def clean(cluster: Spec) -> None: ...
