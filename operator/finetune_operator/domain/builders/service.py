"""The headless Service in which the ranks of a gang find each other."""

from __future__ import annotations

from typing import Any

from finetune_api.contract import RENDEZVOUS_PORT
from finetune_api.finetunejob import Metadata

from finetune_operator.domain.names import child_name, labels, owner


def service(metadata: Metadata, run: str, attempt: int) -> dict[str, Any]:
    """Names pods before they are ready: ranks meet while they start."""
    common = labels(metadata, run, "train", attempt)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": child_name(metadata.name, run, "train", attempt),
            "namespace": metadata.namespace,
            "labels": common,
            "ownerReferences": [owner(metadata)],
        },
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": common,
            "ports": [{"name": "rendezvous", "port": RENDEZVOUS_PORT}],
        },
    }
