"""Apply `finetune_api.budget_policy` to what the training of a job has used."""

from __future__ import annotations

from typing import Any

from finetune_api import budget_policy

from finetune_operator.domain.attempts.usage import spent
from finetune_operator.domain.plan_builder import PlanBuilder


def _used(builder: PlanBuilder) -> dict[str, Any]:
    used = spent(builder)
    gpus = builder.before.gpus or builder.status.gpus or 0
    return {"seconds": used.seconds, "gpu_seconds": used.gpu_seconds, "gpus": gpus}


def exhausted(builder: PlanBuilder) -> str | None:
    """One sentence when the training may use no more."""
    return budget_policy.exhausted(builder.spec.budget, **_used(builder))


def requeue_when_spent(builder: PlanBuilder) -> None:
    """Reconcile again when the training, whose pods all run now, will have used up its budget."""
    limit = budget_policy.tightest(builder.spec.budget, **_used(builder))
    if limit is not None:
        builder.requeue_after(limit.left_seconds)
