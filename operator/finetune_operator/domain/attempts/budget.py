"""Whether a training has spent all that it may. The operator stops it then; the trainer never decides that alone."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.planner.draw import spoken

from finetune_operator.domain.attempts.usage import spent
from finetune_operator.domain.plan_builder import PlanBuilder

_NOTHING_S = 1e-3
"""Less than this is nothing: a clock of floats may wake us a little early."""


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit of spec.budget: how many seconds of training it leaves, and what is said when none are left."""

    left: float
    sentence: str


def tightest(builder: PlanBuilder) -> Limit | None:
    """The limit that is reached first."""
    budget, used = builder.spec.budget, spent(builder)
    gpus = builder.before.gpus or builder.status.gpus or 0
    limits = []
    if budget.max_seconds is not None:
        limits.append(
            Limit(
                budget.max_seconds - used.seconds,
                f"spec.budget.maxDuration: training has taken {spoken(budget.max_seconds)}, which is the limit",
            )
        )
    if budget.max_gpu_hours is not None and gpus:
        limits.append(
            Limit(
                (budget.max_gpu_hours * 3600 - used.gpu_seconds) / gpus,
                f"spec.budget.maxGpuHours: training has taken {budget.max_gpu_hours:g} GPU hours, which is the limit",
            )
        )
    if budget.max_cost is not None and budget.gpu_hour_price is None and gpus:
        limits.append(
            Limit(0, "spec.budget.maxCost: nobody knows what training costs without spec.budget.gpuHourPrice")
        )
    elif budget.max_cost is not None and budget.gpu_hour_price and gpus:
        limits.append(
            Limit(
                (budget.max_cost / budget.gpu_hour_price * 3600 - used.gpu_seconds) / gpus,
                f"spec.budget.maxCost: training has cost {budget.max_cost:,.2f}, which is the limit",
            )
        )
    return min(limits, key=lambda limit: limit.left, default=None)


def exhausted(builder: PlanBuilder) -> str | None:
    """One sentence when a training may spend no more."""
    limit = tightest(builder)
    return limit.sentence if limit is not None and limit.left < _NOTHING_S else None


def requeue_when_spent(builder: PlanBuilder) -> None:
    """Every pod runs, from this very look on or since long: look when that has used up what is left."""
    limit = tightest(builder)
    if limit is not None:
        builder.requeue_after(limit.left)
