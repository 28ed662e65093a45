"""What tells a stage what to do: JSON in an annotation of its pods, which they mount as a file."""

from __future__ import annotations

from finetune_api.contract import JobRef, RunConfig
from finetune_api.finetunejob import Metadata
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import PlanStatus, Stage

MAX_BYTES = 200_000
"""All annotations of a pod together may have 256 KiB."""


def run_config(
    metadata: Metadata, spec: FineTuneJobSpec, run: str, stage: Stage, attempt: int, plan: PlanStatus | None = None
) -> str:
    """`spec` resolved; `plan` as it was accepted. Pod settings are left out: the trainer needs none, and their variables may hold
    secrets."""
    return RunConfig(
        job=JobRef(name=metadata.name, namespace=metadata.namespace, uid=metadata.uid, run=run),
        stage=stage,
        attempt=attempt,
        spec=spec.model_copy(update={"pods": None}),
        plan=plan,
    ).encode()
