"""The headless Service in which the ranks of a gang find each other."""

from __future__ import annotations

from typing import Any

from finetune_api.contract import RENDEZVOUS_PORT
from finetune_api.finetunejob import Metadata

from finetune_operator.domain.names import child_name, labels


def service(metadata: Metadata, run: str, attempt: int, job_uid: str) -> dict[str, Any]:
    """Names pods before they are ready: ranks meet while they start. Its Job owns it, so it goes with the Job."""
    name = child_name(metadata.name, run, "train", attempt)
    common = labels(metadata, run, "train", attempt)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": metadata.namespace,
            "labels": common,
            "ownerReferences": [
                {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": job_uid, "controller": True}
            ],
        },
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": common,
            "ports": [{"name": "rendezvous", "port": RENDEZVOUS_PORT}],
        },
    }
