"""Apply `finetune_api.budget_policy` to what the training of a job has used. The operator stops it; the trainer never decides that alone."""

from __future__ import annotations

from typing import Any

from finetune_api import budget_policy

from finetune_operator.domain.attempts.usage import spent
from finetune_operator.domain.plan_builder import PlanBuilder


def _used(draft: PlanBuilder) -> dict[str, Any]:
    used = spent(draft)
    gpus = draft.before.gpus or draft.status.gpus or 0
    return {"seconds": used.seconds, "gpu_seconds": used.gpu_seconds, "gpus": gpus}


def exhausted(draft: PlanBuilder) -> str | None:
    return budget_policy.exhausted(draft.spec.budget, **_used(draft))


def look_when_spent(draft: PlanBuilder) -> None:
    """Reconcile again when the training, whose pods all run now, will have used up its budget."""
    limit = budget_policy.tightest(draft.spec.budget, **_used(draft))
    if limit is not None:
        draft.requeue_after(limit.left_seconds)
