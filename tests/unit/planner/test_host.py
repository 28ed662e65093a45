"""Host memory of training pods."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_api.effective import resolve
from finetune_api.planner.decide import decide
from finetune_api.planner.draw import draw
from finetune_api.planner.facts import PlanFacts
from finetune_api.planner.host import HostMemory, host_memory_of
from finetune_api.spec import FineTuneJobSpec

from tests.unit.planner.conftest import facts, job

NODE = {"gpusPerNode": 8, "gpuType": "h100", "strategy": "zero3"}


def host(wanted: FineTuneJobSpec, known: PlanFacts) -> HostMemory:
    return host_memory_of(resolve(wanted, decided=decide(wanted, known)[0]), known)


def test_no_process_holds_the_model_while_loading() -> None:
    """70B on eight GPUs: eight processes with the largest tensor each, and an eighth of the checkpoint."""
    made = host(job("full", compute=NODE), facts("70b"))
    assert made.loading == 8 * 128256 * 8192 * 6, "as read in bf16, and as kept in fp32"
    assert made.checkpoint == pytest.approx(12 * 70e9, rel=0.02)
    assert made.training == made.offload == 0
    assert host(job("full", compute=NODE | {"nodes": 4}), facts("70b")).checkpoint == pytest.approx(3 * 70e9, rel=0.02)


@pytest.mark.parametrize(
    ("compute", "bytes_each"),
    [
        ({"strategy": "zero2", "offload": {"optimizer": "cpu"}}, 16),
        ({"strategy": "zero3", "offload": {"optimizer": "cpu", "parameters": "cpu"}}, 18),
        ({"strategy": "fsdp2", "offload": {"parameters": "cpu"}}, 16),
    ],
    ids=["optimizer", "optimizer and parameters", "fsdp2"],
)
def test_offloaded_states_are_pinned_on_the_host(compute: dict[str, Any], bytes_each: int) -> None:
    made = host(job("full", compute={"gpusPerNode": 8, "gpuType": "h100"} | compute), facts("8b"))
    assert made.offload == pytest.approx(1.5 * bytes_each * 8.03e9, rel=0.01)


def test_on_a_cpu_the_host_is_the_device() -> None:
    spec, known = job("full", compute={"device": "cpu", "processesPerNode": 2}), facts("1b")
    made = host(spec, known)
    assert made.training > 2 * 16 * 1.2e9
    assert made.offload == made.checkpoint == made.shared == 0


@pytest.mark.parametrize("kind", ["limits", "requests"])
def test_memory_that_is_too_small_is_named_with_what_is_needed(kind: str) -> None:
    known = facts("8b")
    given = job("lora", pods={"train": {"resources": {kind: {"memory": "2Gi"}}}})
    plan = draw(resolve(given), known, {}, None, given=given)
    assert plan.warning == (
        f"spec.pods.train.resources.{kind}.memory is 2Gi, and a training pod needs {plan.host_memory_per_pod} of host memory by the "
        "estimate: raise it"
    )
    enough = job("lora", pods={"train": {"resources": {kind: {"memory": "200Gi"}}}})
    assert draw(resolve(enough), known, {}, None, given=enough).warning is None
