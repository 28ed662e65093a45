"""What is decided for a user who says nothing, and that nothing else is."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_api.combinations import refused
from finetune_api.effective import overlay, resolve
from finetune_api.planner.decide import FIELDS, decide
from finetune_api.planner.estimate import capacity_of
from finetune_api.planner.memory import memory_of
from finetune_api.spec import FineTuneJobSpec
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.planner.conftest import facts, job

CPU = {"gpusPerNode": 0}
EIGHT_GPUS = {"gpusPerNode": 8, "gpuType": "h100"}


@pytest.mark.parametrize(
    ("spec", "known", "expected"),
    [
        pytest.param(job(compute=CPU), facts("toy", rows=1920, length=70),
                     {"globalBatchSize": 16, "epochs": 4, "learningRate": 4e-3, "warmupRatio": 0.03}, id="the quickstart"),
        pytest.param(job(), facts("8b", rows=20_000), {"globalBatchSize": 32, "epochs": 1, "learningRate": 2e-4}, id="an 8B"),
        pytest.param(job("full", compute=EIGHT_GPUS), facts("8b", rows=20_000), {"globalBatchSize": 64, "learningRate": 2e-5}, id="all of an 8B"),
        pytest.param(job(), facts("8b", rows=40), {"globalBatchSize": 8, "epochs": 6, "warmupRatio": 0.1}, id="few rows"),
        pytest.param(job(), facts("8b", rows=3), {"globalBatchSize": 2}, id="three rows"),
        pytest.param(job(compute={"nodes": 2, "gpusPerNode": 6}), facts("8b", rows=900), {"globalBatchSize": 12}, id="a row for each process"),
        pytest.param(job("prompt"), facts("8b", rows=900), {"learningRate": 1e-2, "epochs": 9}, id="virtual tokens learn slowly"),
        pytest.param(job("full", model={"uri": "pvc://c/x", "task": "sequence-classification"}), facts("1b", task="sequence-classification"),
                     {"learningRate": 1e-5}, id="a classifier trained whole"),
        pytest.param(job(method={"type": "lora", "lora": {"rank": 16, "rslora": True}}), facts("8b"), {"learningRate": 7e-5}, id="rslora"),
        pytest.param(job(training={"maxSteps": 7}), facts("8b"), {"warmupRatio": 0.1, "maxSteps": 7, "epochs": None}, id="steps are given"),
    ],
)  # fmt: skip
def test_hyperparameters(spec: FineTuneJobSpec, known: Any, expected: dict[str, Any]) -> None:
    whole = resolve(spec, decided=decide(spec, known)[0]).training.model_dump(by_alias=True)
    assert {name: whole[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("trained", "rank"), [(1_000_000, 16), (200_000_000, 64), (10**11, 256)], ids=["few", "many", "too many for any"]
)
def test_adapters_have_room_for_what_is_learnt(trained: int, rank: int) -> None:
    known = facts("8b", data={"tokens": trained * 2, "trained_tokens": trained, "rows": trained // 100})
    decided, choices = decide(job(), known)
    assert decided["method"]["lora"]["rank"] == rank
    assert resolve(job(), decided=decided).method.lora.alpha == 2 * rank  # type: ignore[union-attr]
    assert next(choice for choice in choices if choice.field == "method.lora.alpha").value == str(2 * rank)


@pytest.mark.parametrize(
    ("spec", "known", "strategy", "checkpointing", "tokens"),
    [
        pytest.param(job(), facts("8b", length=128), "ddp", "none", 16384, id="it fits as it is"),
        pytest.param(job(), facts("8b", length=4096), "ddp", "none", 8192, id="smaller micro-batches cost least"),
        pytest.param(job(), facts("8b", length=16_000), "ddp", "selective", 16384, id="a row is never cut"),
        pytest.param(job("qlora", compute={"gpuType": "t4"}), facts("8b", length=512), "ddp", "selective", 4096, id="an 8B on 16 GB"),
        pytest.param(job(compute={"gpuType": "h100", "microBatchTokens": 12_000}), facts("8b", length=4096), "ddp", "selective", 12_000, id="their size is given"),
        pytest.param(job("full", compute=EIGHT_GPUS), facts("8b"), "zero2", "none", 16384, id="states are too large for one"),
        pytest.param(job("qlora", compute=EIGHT_GPUS), facts("8b"), "ddp", "none", 16384, id="no need to shard"),
        pytest.param(job("full", compute=EIGHT_GPUS, training={"optimizer": "muon"}), facts("1b"), "ddp", "none", 16384, id="muon cannot be sharded"),
        pytest.param(job(compute=CPU), facts("8b"), "ddp", "none", 2048, id="nobody knows the memory of a CPU"),
        pytest.param(job(compute={"gpusPerNode": 2}), facts("8b"), "zero2", "none", 16384, id="nor that of a GPU without a name"),
        pytest.param(job("full", compute={"gpusPerNode": 4, "gpuMemory": "14Gi"}), facts("1b"), "fsdp2", "none", 16384, id="its memory alone is known"),
    ],
)  # fmt: skip
def test_sharing_and_recomputing_by_memory(
    spec: FineTuneJobSpec, known: Any, strategy: str, checkpointing: str, tokens: int
) -> None:
    whole = resolve(spec, decided=decide(spec, known)[0])
    decided = (whole.compute.strategy, whole.training.activation_checkpointing, whole.compute.micro_batch_tokens)
    assert decided == (strategy, checkpointing, tokens)
    if (capacity := capacity_of(whole)) is not None:
        assert memory_of(whole, known).total <= capacity


SPECS = st.builds(
    job,
    st.sampled_from(["lora", "qlora", "dora", "prefix", "prompt", "full"]),
    training=st.fixed_dictionaries(
        {},
        optional={
            "globalBatchSize": st.sampled_from([1, 7, 64]),
            "epochs": st.integers(1, 9),
            "learningRate": st.sampled_from([1e-5, 3e-3]),
            "warmupRatio": st.sampled_from([0.0, 0.5]),
            "activationCheckpointing": st.just("none"),
            "schedule": st.sampled_from(["wsd", "constant"]),
        },
    ),
    compute=st.fixed_dictionaries(
        {"gpusPerNode": st.sampled_from([0, 1, 8])},
        optional={"nodes": st.integers(1, 4), "strategy": st.just("zero2")},
    ),
    checkpoint=st.sampled_from([{}, {"everySteps": 3}]),
)
FACTS = st.builds(
    facts, st.sampled_from(["toy", "1b", "8b", "moe"]), rows=st.integers(1, 100_000), length=st.integers(2, 9000)
)


@settings(max_examples=60, deadline=None)
@given(spec=SPECS, known=FACTS)
def test_what_the_user_says_stays_and_all_else_is_decided_once(spec: FineTuneJobSpec, known: Any) -> None:
    decided, choices = decide(spec, known)
    whole = resolve(spec, decided=decided)
    assert _kept(spec.wire(), overlay(spec, decided).wire()), "a value of the user's was changed"
    assert decide(whole, known)[0] == {}, "deciding again decides something"
    assert resolve(resolve(spec), decided=decided) == whole == resolve(whole, decided=decided)
    named = [choice.field for choice in choices]
    assert len(named) == len(set(named))
    assert all(choice.why and choice.value and "\n" not in choice.why for choice in choices)
    assert set(_paths(decided)) <= set(named) & set(FIELDS)
    for path in ("training.learningRate", "training.globalBatchSize", "training.schedule", "checkpoint.everySteps"):
        assert (path in named) == (not _has(spec.wire(), path)), path
    if not any(refused(resolve(spec, decided={}))):
        assert not any(refused(whole)), "what is decided cannot work"


def _kept(above: dict[str, Any], merged: dict[str, Any]) -> bool:
    return all(
        _kept(value, merged[name]) if isinstance(value, dict) else merged[name] == value
        for name, value in above.items()
    )


def _paths(part: dict[str, Any], before: str = "") -> list[str]:
    found = []
    for name, value in part.items():
        found += _paths(value, f"{before}{name}.") if isinstance(value, dict) else [f"{before}{name}"]
    return found


def _has(wire: Any, path: str) -> bool:
    for name in path.split("."):
        if not isinstance(wire, dict) or name not in wire:
            return False
        wire = wire[name]
    return True
