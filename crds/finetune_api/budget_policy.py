"""Decide whether a plan is within `spec.budget` and whether a training has used it up. The operator and local runs share these rules."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.budget import BudgetSpec
from finetune_api.planner.draw import spoken
from finetune_api.status import PlanStatus

_NOTHING_S = 1e-3
"""A timer may fire this much too early: with less than this left a limit is reached."""


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit of spec.budget: how many seconds of training it leaves, and the sentence for when none are left."""

    left_seconds: float
    sentence: str


def tightest(budget: BudgetSpec, *, seconds: float, gpu_seconds: float, gpus: int) -> Limit | None:
    """Return the limit that is reached first. `seconds` and `gpu_seconds` are those of all attempts; the next seconds use `gpus`."""
    limits = []
    if budget.max_seconds is not None:
        limits.append(
            Limit(
                budget.max_seconds - seconds,
                f"spec.budget.maxDuration: training has run for {spoken(budget.max_seconds)}, which is the limit",
            )
        )
    if budget.max_gpu_hours is not None and gpus:
        limits.append(
            Limit(
                (budget.max_gpu_hours * 3600 - gpu_seconds) / gpus,
                f"spec.budget.maxGpuHours: training has used {budget.max_gpu_hours:g} GPU hours, which is the limit",
            )
        )
    if budget.max_cost is not None and gpus:
        if budget.gpu_hour_price is None:
            limits.append(
                Limit(0, "spec.budget.maxCost: the cost of training is unknown; set spec.budget.gpuHourPrice")
            )
        elif budget.gpu_hour_price:
            limits.append(
                Limit(
                    (budget.max_cost / budget.gpu_hour_price * 3600 - gpu_seconds) / gpus,
                    f"spec.budget.maxCost: training has cost {budget.max_cost:,.2f}, which is the limit",
                )
            )
    return min(limits, key=lambda limit: limit.left_seconds, default=None)


def exhausted(budget: BudgetSpec, *, seconds: float, gpu_seconds: float, gpus: int) -> str | None:
    """Return the sentence of the limit that a training has reached."""
    limit = tightest(budget, seconds=seconds, gpu_seconds=gpu_seconds, gpus=gpus)
    return limit.sentence if limit is not None and limit.left_seconds < _NOTHING_S else None


def over_budget(plan: PlanStatus, budget: BudgetSpec) -> str | None:
    """Return a sentence with the field, the planned figure and the limit, for the first limit that the plan exceeds."""
    limit = budget.max_seconds
    if limit is not None and plan.duration_seconds is not None and plan.duration_seconds > limit:
        return f"spec.budget.maxDuration: the plan takes {spoken(plan.duration_seconds)}, and {budget.max_duration} is the limit"
    if budget.max_gpu_hours is not None and plan.gpu_hours is not None and plan.gpu_hours > budget.max_gpu_hours:
        return f"spec.budget.maxGpuHours: the plan takes {plan.gpu_hours:.4g} GPU hours, and {budget.max_gpu_hours:g} is the limit"
    if budget.max_cost is not None and plan.cost is not None and plan.cost > budget.max_cost:
        return f"spec.budget.maxCost: the plan costs {plan.cost:,.2f}, and {budget.max_cost:,.2f} is the limit"
    return None


def unknown_cost(plan: PlanStatus, budget: BudgetSpec) -> str | None:
    """Return a sentence when the cost is limited but cannot be computed because no price is set."""
    if budget.max_cost is None or not plan.gpu_hours or plan.cost is not None:
        return None
    return f"spec.budget.maxCost: the cost of {plan.gpu_hours:.4g} GPU hours is unknown; set spec.budget.gpuHourPrice"
