"""Check budget, mode and approval between a prepared run and its training, as the operator does."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from finetune_api import budget_policy
from finetune_api.budget import BudgetSpec
from finetune_api.operator_state import OperatorState
from finetune_api.planner.draw import draw
from finetune_api.planner.facts import PlanFacts
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus, Phase, PlanStatus, UsageStatus

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
    state = OperatorState.of(status)
    if state.facts is None:
        return status.plan
    return draw(spec, PlanFacts.model_validate(state.facts), state.decided or {}, status.plan)


def held(spec: FineTuneJobSpec, status: FineTuneJobStatus, *, approved: str | None) -> Held | None:
    """None where training may begin. `approved` is the digest of the plan that somebody said yes to."""
    plan, budget = status.plan or PlanStatus(), spec.budget
    if seconds := status.used.train_seconds:  # from then on what was used decides, not what was planned
        if why := spent(budget, seconds, status.gpus or 0):
            return exhausted(why)
    elif why := budget_policy.over_budget(plan, budget) or budget_policy.unknown_cost(plan, budget):
        return Held("Failed", OVER_BUDGET, why)
    if spec.mode == "Plan":
        return Held("Completed", PLANNED, "The plan is made; nothing was trained")
    if budget.approval == "Manual" and (plan.digest is None or plan.digest not in (budget.approved_plan, approved)):
        message = f"spec.budget.approval is Manual and plan {plan.digest} is not approved: give --approve, or set spec.budget.approvedPlan: {plan.digest}"
        return Held("AwaitingApproval", AWAITING_APPROVAL, message)
    return None


def spent(budget: BudgetSpec, seconds: float, gpus: int) -> str | None:
    """Return the sentence of the limit that a training of `seconds` over all attempts has reached."""
    return budget_policy.exhausted(budget, seconds=seconds, gpu_seconds=gpus * seconds, gpus=gpus)


def exhausted(why: str) -> Held:
    return Held(
        "Suspended", BUDGET_EXHAUSTED, f"{why}; raise it, and the same command resumes from the last checkpoint"
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
        self._before, self._began = self.status.used.train_seconds or 0, self.clock()

    def newly_reached(self) -> str | None:
        """The limit, when it is reached for the first time."""
        if not self.counts:
            return None
        gpus, seconds = self.status.gpus or 0, self._before + math.ceil(self.clock() - self._began)
        self.status.usage = UsageStatus(train_seconds=seconds, gpu_seconds=gpus * seconds)
        if self.limit is None:
            self.limit = spent(self.budget, seconds, gpus)
            return self.limit
        return None
