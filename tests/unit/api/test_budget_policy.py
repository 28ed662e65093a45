"""Limits of spec.budget on a plan and on what a training has used."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_api.budget import BudgetSpec
from finetune_api.budget_policy import exhausted, over_budget, tightest, unknown_cost
from finetune_api.status import PlanStatus

ALL = {"maxDuration": "2h", "maxGpuHours": 9, "maxCost": 30, "gpuHourPrice": 3}


@pytest.mark.parametrize(
    ("budget", "seconds", "gpu_seconds", "gpus", "left", "field"),
    [
        ({}, 1e9, 1e9, 8, None, None),
        ({"maxDuration": "1m"}, 59, 0, 0, 1, "maxDuration: training has run for 1m00s, which is the limit"),
        ({"maxDuration": "1m"}, 60.5, 0, 0, -0.5, "maxDuration"),
        ({"maxGpuHours": 1}, 7200, 0, 0, None, None),
        ({"maxGpuHours": 1}, 450, 3600, 8, 0, "maxGpuHours: training has used 1 GPU hours, which is the limit"),
        ({"maxGpuHours": 1}, 450, 1800, 4, 450, "maxGpuHours"),
        ({"maxCost": 5}, 0, 0, 8, 0, "maxCost: the cost of training is unknown; set spec.budget.gpuHourPrice"),
        ({"maxCost": 5}, 0, 0, 0, None, None),
        ({"maxCost": 5, "gpuHourPrice": 0}, 3600, 3600, 1, None, None),
        ({"maxCost": 5, "gpuHourPrice": 2.5}, 1800, 3600, 2, 1800, "maxCost: training has cost 5.00, which is the limit"),
        (ALL, 3600, 4 * 3600, 4, 3600, "maxDuration"),
        (ALL, 3600, 6 * 3600, 4, 2700, "maxGpuHours"),
        (ALL | {"maxCost": 18.3}, 3600, 6 * 3600, 4, 90, "maxCost"),
    ],
)  # fmt: skip
def test_the_tightest_limit_of_a_training(
    budget: dict[str, Any], seconds: float, gpu_seconds: float, gpus: int, left: float | None, field: str | None
) -> None:
    used: dict[str, Any] = {"seconds": seconds, "gpu_seconds": gpu_seconds, "gpus": gpus}
    limit = tightest(BudgetSpec.model_validate(budget), **used)
    ended = exhausted(BudgetSpec.model_validate(budget), **used)
    if left is None:
        assert (limit, ended) == (None, None)
        return
    assert limit is not None
    assert limit.left_seconds == pytest.approx(left)
    assert limit.sentence.startswith(f"spec.budget.{field}")
    assert ended == (limit.sentence if left <= 0 else None)


def test_a_limit_is_reached_when_a_timer_fires_early() -> None:
    used = {"seconds": 59.9995, "gpu_seconds": 0.0, "gpus": 0}
    assert exhausted(BudgetSpec(max_duration="1m"), **used) is not None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ({}, None),
        ({"maxGpuHours": 10, "maxCost": 20, "maxDuration": "2h"}, None),
        ({"maxGpuHours": 9.5}, "spec.budget.maxGpuHours: the plan takes 10 GPU hours, and 9.5 is the limit"),
        ({"maxCost": 19.99}, "spec.budget.maxCost: the plan costs 20.00, and 19.99 is the limit"),
        ({"maxDuration": "1h59m"}, "spec.budget.maxDuration: the plan takes 2h00m, and 1h59m is the limit"),
    ],
)
def test_a_plan_over_budget(budget: dict[str, Any], expected: str | None) -> None:
    plan = PlanStatus(gpu_hours=10, cost=20, duration_seconds=7200)
    assert over_budget(plan, BudgetSpec.model_validate(budget)) == expected
    assert over_budget(PlanStatus(), BudgetSpec.model_validate(budget)) is None


@pytest.mark.parametrize(
    ("plan", "limit", "unknown"),
    [
        (PlanStatus(gpu_hours=10), 1000, True),
        (PlanStatus(gpu_hours=10, cost=0), 1000, False),
        (PlanStatus(gpu_hours=0), 1000, False),
        (PlanStatus(gpu_hours=10), None, False),
    ],
)
def test_a_plan_of_unknown_cost(plan: PlanStatus, limit: float | None, unknown: bool) -> None:
    sentence = "spec.budget.maxCost: the cost of 10 GPU hours is unknown; set spec.budget.gpuHourPrice"
    assert unknown_cost(plan, BudgetSpec(max_cost=limit)) == (sentence if unknown else None)
