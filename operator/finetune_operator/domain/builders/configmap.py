"""The ConfigMap that tells a stage what to do."""

from __future__ import annotations

from typing import Any

from finetune_api.contract import RUN_CONFIG_KEY, JobRef, RunConfig
from finetune_api.finetunejob import Metadata
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import PlanStatus, Stage

from finetune_operator.domain.names import child_name, labels, owner


def config_map(
    metadata: Metadata, spec: FineTuneJobSpec, run: str, stage: Stage, attempt: int, plan: PlanStatus | None = None
) -> dict[str, Any]:
    """`spec` resolved; `plan` as it was accepted. Pod settings are left out: the trainer needs none, and their variables may hold secrets."""
    told = RunConfig(
        job=JobRef(name=metadata.name, namespace=metadata.namespace, uid=metadata.uid, run=run),
        stage=stage,
        attempt=attempt,
        spec=spec.model_copy(update={"pods": None}),
        plan=plan,
    )
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": child_name(metadata.name, run, stage, attempt),
            "namespace": metadata.namespace,
            "labels": labels(metadata, run, stage, attempt),
            "ownerReferences": [owner(metadata)],
        },
        "immutable": True,
        "data": {RUN_CONFIG_KEY: told.encode()},
    }
