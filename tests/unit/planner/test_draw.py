"""A plan's name and what stands in it."""

from __future__ import annotations

import pytest
from finetune_api.effective import PlatformDefaults, resolve
from finetune_api.planner.decide import decide
from finetune_api.planner.draw import draw, quantity, spoken
from finetune_api.planner.facts import Measured, PlanFacts
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import PlanStatus

from tests.unit.planner.conftest import facts, job

KNOWN = facts("8b")


def plan_of(spec: FineTuneJobSpec, known: PlanFacts = KNOWN, counted: PlanStatus | None = None) -> PlanStatus:
    return draw(spec, known, decide(spec, known)[0], counted)


BASE = {"budget": {"gpuHourPrice": 2.0}}


@pytest.mark.parametrize(
    ("changed", "known"),
    [
        (job(**BASE, training={"learningRate": 9e-5}), KNOWN),
        (job(**BASE, training={"epochs": 1}), KNOWN),
        (job("qlora", **BASE), KNOWN),
        (job(**BASE, compute={"gpusPerNode": 2, "gpuType": "h100"}), KNOWN),
        (job(**BASE, compute={"gpusPerNode": 1, "gpuType": "h200"}), KNOWN),
        (job(**BASE, model={"uri": "pvc://claim/y"}), KNOWN),
        (job(**BASE, output={"uri": "pvc://claim/elsewhere"}), KNOWN),
        (job(budget={"gpuHourPrice": 3.0}), KNOWN),
        (job(**BASE), facts("8b", rows=2001)),
        (job(**BASE), facts("7b")),
    ],
    ids=["rate", "epochs", "method", "GPUs", "GPU type", "model", "output", "price", "data", "the model's sizes"],
)  # fmt: skip
def test_a_plan_has_another_name_when_something_that_matters_differs(
    changed: FineTuneJobSpec, known: PlanFacts
) -> None:
    assert plan_of(changed, known).digest != plan_of(job(**BASE)).digest


@pytest.mark.parametrize(
    ("changed", "known"),
    [
        (job(budget={"gpuHourPrice": 2.0, "maxCost": 10, "maxDuration": "3h", "maxGpuHours": 4, "approval": "Manual"}), KNOWN),
        (job(budget={"gpuHourPrice": 2.0, "approvedPlan": "sha256:0"}), KNOWN),
        (job(**BASE, suspend=True, retry={"infra": 9}, mode="Plan", readyWhen="Completed"), KNOWN),
        (job(**BASE, pods={"common": {"labels": {"a": "b"}}}), KNOWN),
        (job(**BASE, scheduling={"priorityClass": "low"}, ttlSecondsAfterFinished=9), KNOWN),
        (job(**BASE, checkpoint={"keep": 5}), KNOWN),
        (job(**BASE), KNOWN.model_copy(update={"measured": Measured(tokens_per_second=3)})),
    ],
    ids=["limits", "approval", "switches", "labels", "scheduling", "checkpoints kept", "a measurement"],
)  # fmt: skip
def test_and_keeps_its_name_when_nothing_that_matters_does(changed: FineTuneJobSpec, known: PlanFacts) -> None:
    digest = plan_of(changed, known).digest
    assert digest == plan_of(job(**BASE)).digest
    assert digest is not None
    assert digest.startswith("sha256:")
    assert len(digest) == len("sha256:") + 16


def test_the_plan_is_the_same_from_what_the_user_wrote_and_from_what_became_of_it() -> None:
    defaults = PlatformDefaults(gpu_hour_price=1.5, gpu_type="h100")
    wanted = job(compute={"gpusPerNode": 1})
    early = resolve(wanted, defaults)
    decided, _ = decide(early, KNOWN)
    late = resolve(wanted, defaults, decided)
    first, second = draw(early, KNOWN, decided, None, given=wanted), draw(late, KNOWN, decided, None, given=wanted)
    assert first == second
    fields = {choice.field: choice for choice in first.choices or ()}
    for name in (
        "training.learningRate",
        "training.schedule",
        "compute.gpuType",
        "budget.gpuHourPrice",
        "compute.strategy",
    ):
        assert fields[name].why, name
    assert draw(late, KNOWN, decided, None).choices is None or "training.learningRate" not in {
        choice.field for choice in draw(late, KNOWN, decided, None).choices or ()
    }


def test_what_prepare_counted_and_decided_stands() -> None:
    spec = job()
    decided, _ = decide(spec, KNOWN)
    decided["training"]["learningRate"] = 1.25e-4
    counted = PlanStatus(steps=77, epochs=1.5, tokens=123_456, global_batch_size=8, max_new_tokens=99)
    made = draw(spec, KNOWN, decided, counted)
    assert (made.steps, made.epochs, made.tokens, made.max_new_tokens) == (77, 1.5, 123_456, 99)
    rate = next(choice for choice in made.choices or () if choice.field == "training.learningRate")
    assert rate.value == "0.000125"


def test_everything_is_in_the_plan() -> None:
    made = plan_of(job(**BASE))
    missing = [name for name in PlanStatus.model_fields if getattr(made, name) is None]
    assert missing == ["max_new_tokens", "warning"]
    assert made.longest_seconds > made.duration_seconds > 0  # type: ignore[operator]
    assert "does not fit" in (plan_of(job("full")).warning or "")


def test_figures_for_people() -> None:
    assert [spoken(seconds) for seconds in (4, 750, 7500, 360000)] == ["4s", "12m30s", "2h05m", "4d04h"]
    assert [quantity(size) for size in (300 << 20, 44_346_000_000)] == ["300Mi", "41.3Gi"]
