"""Between prepare and train: the plan, its budget, its approval. Nothing is asked of a GPU before all three hold.

A table of small policies over a builder whose prepare stage is done; each may settle where the job stands.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from finetune_api.budget_policy import over_budget, unknown_cost
from finetune_api.effective import PlatformDefaults, holding, resolve
from finetune_api.planner.draw import draw
from finetune_api.planner.facts import PlanFacts
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FailureStatus, PlanStatus
from pydantic import ValidationError

from finetune_operator.domain import numbers
from finetune_operator.domain.attempts import completion
from finetune_operator.domain.attempts.history import latest
from finetune_operator.domain.plan_builder import JobState, PlanBuilder
from finetune_operator.domain.reasons import Code, Reason


def hold(builder: PlanBuilder) -> None:
    """Before each attempt at the training, and until its pods run. Settles where the job stands unless it may go on."""
    for policy in _POLICIES:
        policy(builder)
        if builder.job_state is not None:
            return
    # PlanAccepted stands in the status before anything that a GPU is asked with exists.
    accepted = any(c.type == "PlanAccepted" and c.status == "True" for c in builder.before.conditions or [])
    builder.status_first = builder.status_first or not accepted


def begun(builder: PlanBuilder) -> bool:
    """Whether a training pod of this run ever ran. Then what was spent decides, no more what was planned."""
    return bool(builder.status.used.train_seconds) or any(a.stage == "train" and a.started for a in builder.attempts)


def objection(builder: PlanBuilder) -> tuple[str, str] | None:
    """Why the plan may not be trained, as a reason and a sentence; None when it may, or when it is too late to ask."""
    entry, failure = latest(builder.attempts, "train"), builder.status.failure
    if failure is not None and failure.code == Code.OVER_BUDGET and failure.stage is None:  # no pod's word
        return Code.OVER_BUDGET, failure.message
    if failure is not None and begun(builder):
        return None
    suspended = builder.job_state is not None and builder.job_state.suspended
    if entry is not None and (
        entry.outcome == "Succeeded" or (entry.outcome == "Running" and entry.started and not suspended)
    ):
        return None
    if (sentence := beyond_budget(builder)) is not None:
        return Code.OVER_BUDGET, sentence
    if (sentence := unapproved(builder)) is not None:
        return Reason.AWAITING_APPROVAL, sentence
    return None


def make_plan(builder: PlanBuilder) -> None:
    """From the facts that prepare left, and the spec as it is now: compute, prices and budgets may have changed."""
    status, state = builder.status, builder.state
    if state.facts is None or state.decided is None:  # prepared by an image that tells no facts
        return
    drawn = _drawn(
        builder.wanted.model_dump_json(exclude_none=True, exclude_defaults=True),
        PlatformDefaults.model_validate(state.defaults or {}).model_dump_json(exclude_none=True, exclude_defaults=True),
        _Frozen(state.facts),
        _Frozen(state.decided),
        (status.plan or PlanStatus()).model_dump_json(include=_COUNTED, exclude_none=True),
    )
    # What no plan can be made of keeps no earlier one's digest: nobody may approve it.
    status.plan = drawn or (status.plan and counted(status.plan))


_COUNTED = {
    "steps", "epochs", "tokens", "global_batch_size", "checkpoint_every_steps", "validate_every_steps", "max_new_tokens",
}  # fmt: skip
"""What prepare counts, which no change of compute changes."""


def counted(plan: PlanStatus) -> PlanStatus:
    """A pod's word on the plan, as far as it is its own: what follows from that is the operator's."""
    return PlanStatus.model_validate(plan.model_dump(include=_COUNTED))


class _Frozen(dict[str, Any]):
    """Known by its content, so that it can be part of a cache's key."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(repr(self))


@functools.lru_cache(maxsize=1024)
def _drawn(wanted: str, defaults: str, facts: _Frozen, decided: _Frozen, counted: str) -> PlanStatus | None:
    """A plan takes milliseconds, and a job that waits is looked at again and again. None: the facts are none."""
    given = FineTuneJobSpec.model_validate_json(wanted)
    held = holding(given, dict(decided))
    spec = resolve(given, PlatformDefaults.model_validate_json(defaults), held)
    try:
        plan = draw(spec, PlanFacts.model_validate(facts), held, PlanStatus.model_validate_json(counted), given=given)
    except (ValidationError, ArithmeticError, ValueError):  # a pod's word is not trusted
        return None
    return plan if numbers.fit(dict(plan).values()) else None


def beyond_budget(builder: PlanBuilder) -> str | None:
    """One sentence when the plan is more than its budget allows."""
    plan = builder.status.plan
    if plan is None or begun(builder):
        return None
    return over_budget(plan, builder.spec.budget) or unknown_cost(plan, builder.spec.budget)


def refuse_over_budget(builder: PlanBuilder) -> None:
    """Before the queue."""
    sentence = beyond_budget(builder)
    if sentence is None:
        return
    remedy = "Raise the limit, or choose a cheaper plan (ftj plan --compare), and set a new spec.runToken to run again"
    completion.fail(builder, FailureStatus(code=Code.OVER_BUDGET, message=sentence, remedy=remedy))


def end_with_the_plan(builder: PlanBuilder) -> None:
    """`mode: Plan`."""
    if builder.wanted.mode == "Plan" and not begun(builder):
        completion.planned(builder, headline(builder.status.plan))


def wait_for_approval(builder: PlanBuilder) -> None:
    message = unapproved(builder)
    if message is None:
        return
    builder.job_state = JobState("AwaitingApproval", Reason.AWAITING_APPROVAL, message)
    if builder.before.reason != Reason.AWAITING_APPROVAL or builder.before.message != message:
        builder.emit_event("Normal", Reason.AWAITING_APPROVAL, "Wait", message)


def unapproved(builder: PlanBuilder) -> str | None:
    """What is to be done so that the plan is approved; None when nothing is."""
    budget, plan = builder.wanted.budget, builder.status.plan
    if budget.approval != "Manual":
        return None
    if (
        builder.state.facts is None or plan is None or plan.digest is None
    ):  # nothing that could be approved, so nothing is
        return (
            "spec.budget.approval: Manual needs a plan, and the trainer image reported none. "
            "Use the operator's own trainer image and set a new spec.runToken, or set spec.budget.approval: Automatic"
        )
    if budget.approved_plan == plan.digest:
        return None
    other = ""
    if budget.approved_plan is not None:
        other = f"spec.budget.approvedPlan {budget.approved_plan} names another plan than this one. "
    return (
        f"{other}The plan waits for approval: {headline(plan)}. "
        f"Approve it with `ftj approve {builder.metadata.name} -n {builder.metadata.namespace}`, or set spec.budget.approvedPlan: {plan.digest}"
    )


def headline(plan: PlanStatus | None) -> str:
    """`225 steps, 12m30s, 3.2 GPU hours, cost 8.00`."""
    if plan is None:
        return "no plan was made"
    parts = [f"{plan.steps} steps" if plan.steps is not None else None, plan.duration]
    if plan.gpu_hours:
        parts.append(f"{plan.gpu_hours:.4g} GPU hours")
    if plan.cost is not None and plan.gpu_hours:
        parts.append(f"cost {plan.cost:,.2f}")
    if plan.memory_per_gpu:
        parts.append(f"{plan.memory_per_gpu} a {'GPU' if plan.gpu_hours else 'process'}")
    said = ", ".join(part for part in parts if part)
    return f"{said}. {plan.warning}" if plan.warning else said


_POLICIES: tuple[Callable[[PlanBuilder], None], ...] = (
    refuse_over_budget,
    end_with_the_plan,
    wait_for_approval,
)
