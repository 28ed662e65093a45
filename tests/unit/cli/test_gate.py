"""What keeps a prepared local run from training, and what stops one that trains."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_api.budget import BudgetSpec
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus, PlanStatus, UsageStatus
from finetune_cli.local import gate
from finetune_cli.local import status as book

from .conftest import BODY

PLAN = PlanStatus(digest="4f2a", steps=10, gpu_hours=8, cost=20, duration_seconds=3600, longest_seconds=5400)


def spec(mode: str = "Run", **budget: Any) -> FineTuneJobSpec:
    return FineTuneJobSpec.model_validate({**BODY["spec"], "mode": mode, "budget": budget})


@pytest.mark.parametrize(
    ("wanted", "approved", "seconds", "held"),
    [
        (spec(), None, 0, None),
        (spec(maxGpuHours=100, maxCost=100, maxDuration="10h"), None, 0, None),
        (spec(maxGpuHours=7), None, 0, ("Failed", "OverBudget", "spec.budget.maxGpuHours")),
        (spec(maxCost=7, mode="Plan"), None, 0, ("Failed", "OverBudget", "spec.budget.maxCost")),
        (spec(maxGpuHours=7), None, 60, None),
        (spec(mode="Plan", approval="Manual"), None, 0, ("Completed", "Planned", "The plan is made")),
        (spec(approval="Manual"), None, 0, ("AwaitingApproval", "AwaitingApproval", "spec.budget.approval is Manual and plan 4f2a is not approved: give --approve")),
        (spec(approval="Manual"), "beef", 0, ("AwaitingApproval", "AwaitingApproval", "spec.budget.approval is Manual")),
        (spec(approval="Manual"), "4f2a", 0, None),
        (spec(approval="Manual", approvedPlan="4f2a"), None, 0, None),
        (spec(maxDuration="2h"), None, 7200, ("Suspended", "BudgetExhausted", "spec.budget.maxDuration: training has run for 2h00m, which is the limit; raise it")),
    ],
)  # fmt: skip
def test_what_stands_before_training(
    wanted: FineTuneJobSpec, approved: str | None, seconds: int, held: tuple[str, str, str] | None
) -> None:
    found = gate.held(wanted, FineTuneJobStatus(plan=PLAN, usage=UsageStatus(train_seconds=seconds)), approved=approved)
    if held is None:
        assert found is None
    else:
        assert found is not None
        assert (found.phase, found.reason) == held[:2]
        assert found.message.startswith(held[2])


def test_no_plan_is_no_approved_plan() -> None:
    found = gate.held(spec(approval="Manual"), FineTuneJobStatus(plan=PlanStatus(steps=1)), approved=None)
    assert found is not None
    assert found.reason == "AwaitingApproval"


def test_the_time_of_all_attempts_counts_and_is_told_once() -> None:
    now, status = [100.0], FineTuneJobStatus(usage=UsageStatus(train_seconds=50), gpus=2)
    meter = gate.Meter(BudgetSpec(max_duration="1m"), status, counts=True, clock=lambda: now[0])
    now[0] = 109.0
    assert meter.newly_reached() is None
    assert (status.used.train_seconds, status.used.gpu_seconds) == (59, 118)
    now[0] = 110.0
    assert meter.newly_reached() == "spec.budget.maxDuration: training has run for 1m00s, which is the limit"
    now[0] = 111.0
    assert meter.newly_reached() is None
    assert meter.limit
    assert status.used.train_seconds == 61
    idle = gate.Meter(BudgetSpec(max_duration="1s"), FineTuneJobStatus(), counts=False, clock=lambda: now[0])
    now[0] = 200
    assert idle.newly_reached() is None


@pytest.mark.parametrize("phase", ["Failed", "Completed", "Suspended", "AwaitingApproval"])
def test_a_run_that_was_held_can_go_on(phase: Any) -> None:
    """Once the reason is gone the next attempt clears whatever held it."""
    status = FineTuneJobStatus()
    book.hold(status, gate.Held(phase, "Why", "message"))
    assert (status.phase, status.reason, status.message) == (phase, "Why", "message")
    assert (status.failure is not None) is (phase == "Failed")
    book.begin(status, "train")
    assert (status.phase, status.failure, status.conditions) == ("Training", None, None)
