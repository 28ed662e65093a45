"""What stands between a prepared run and its training: the budget, the mode, the approval. As the operator does it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from finetune_api.budget import BudgetSpec
from finetune_api.planner.draw import draw, over_budget, unknown_cost
from finetune_api.planner.facts import PlanFacts
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus, Phase, PlanStatus

from finetune_cli.text import duration, figure, money
from finetune_cli.view import BUDGET_EXHAUSTED, PLANNED

OVER_BUDGET = "OverBudget"
AWAITING_APPROVAL = "AwaitingApproval"


@dataclass(frozen=True, slots=True)
class Held:
    """Why training does not begin."""

    phase: Phase
    reason: str
    message: str


def drawn(spec: FineTuneJobSpec, status: FineTuneJobStatus) -> PlanStatus | None:
    """The plan that prepare measured, with all that follows from model and data; `spec` is as it was written."""
    if status.facts is None:
        return status.plan
    return draw(spec, PlanFacts.model_validate(status.facts), status.decided or {}, status.plan)


def held(spec: FineTuneJobSpec, status: FineTuneJobStatus, *, approved: str | None) -> Held | None:
    """None where training may begin. `approved` is the digest of the plan that somebody said yes to."""
    plan, budget = status.plan or PlanStatus(), spec.budget
    if why := spent(budget, status.train_seconds or 0, status.gpus or 0):
        return exhausted(why)
    if why := over_budget(plan, budget) or unknown_cost(plan, budget):
        return Held("Failed", OVER_BUDGET, why)
    if spec.mode == "Plan":
        return Held("Completed", PLANNED, "The plan is made; nothing was trained")
    if budget.approval == "Manual" and (plan.digest is None or plan.digest not in (budget.approved_plan, approved)):
        message = f"spec.budget.approval is Manual and plan {plan.digest} is not approved: give --approve, or set spec.budget.approvedPlan: {plan.digest}"
        return Held("AwaitingApproval", AWAITING_APPROVAL, message)
    return None


def spent(budget: BudgetSpec, seconds: float, gpus: int) -> str | None:
    """The limit that a training of `seconds` over all attempts has reached, as a clause with both figures."""
    hours = gpus * seconds / 3600
    if budget.max_seconds is not None and seconds >= budget.max_seconds:
        return f"spec.budget.maxDuration: trained for {duration(seconds)}, and {budget.max_duration} is the limit"
    if budget.max_gpu_hours is not None and hours >= budget.max_gpu_hours:
        return f"spec.budget.maxGpuHours: {figure(hours)} GPU hours are used, and {budget.max_gpu_hours:g} is the limit"
    cost = hours * (budget.gpu_hour_price or 0)
    if budget.max_cost is not None and cost >= budget.max_cost:
        return f"spec.budget.maxCost: {money(cost)} is spent, and {money(budget.max_cost)} is the limit"
    return None


def exhausted(why: str) -> Held:
    return Held(
        "Suspended", BUDGET_EXHAUSTED, f"{why}; raise it, and the same command goes on from the last checkpoint"
    )


@dataclass
class Meter:
    """Counts a training's time in its status against the budget."""

    budget: BudgetSpec
    status: FineTuneJobStatus
    counts: bool
    clock: Callable[[], float] = time.monotonic
    limit: str | None = None
    """The one that was reached."""

    def __post_init__(self) -> None:
        self._before, self._began = self.status.train_seconds or 0, self.clock()

    def newly_reached(self) -> str | None:
        """The limit, when it is reached for the first time."""
        if not self.counts:
            return None
        gpus, seconds = self.status.gpus or 0, self._before + math.ceil(self.clock() - self._began)
        self.status.train_seconds, self.status.gpu_seconds = seconds, gpus * seconds
        if self.limit is None:
            self.limit = spent(self.budget, seconds, gpus)
            return self.limit
        return None
