"""Memory, and what would make a job fit; time, money and room."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_api.effective import resolve
from finetune_api.planner.compare import compare
from finetune_api.planner.decide import decide
from finetune_api.planner.estimate import Estimate, estimate
from finetune_api.planner.facts import Measured
from finetune_api.planner.fit import STRATEGIES, with_way
from finetune_api.planner.gpus import GPUS
from finetune_api.planner.memory import memory_of
from finetune_api.planner.share import of_step
from finetune_api.spec import FineTuneJobSpec
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.unit.planner.conftest import facts, job

METHODS = st.sampled_from(["lora", "qlora", "dora", "prefix", "prompt", "full"])


def planned(spec: FineTuneJobSpec, known: Any) -> Estimate:
    return estimate(resolve(spec, decided=decide(spec, known)[0]), known)


@settings(max_examples=60, deadline=None)
@given(
    method=METHODS,
    model=st.sampled_from(["toy", "1b", "8b", "moe"]),
    length=st.integers(16, 20_000),
    more=st.integers(1, 4000),
    batch=st.sampled_from([1, 8, 64]),
    kind=st.sampled_from(["none", "selective", "full"]),
)
def test_longer_rows_never_need_less(
    method: str, model: str, length: int, more: int, batch: int, kind: str
) -> None:  # fmt: skip
    assume(method != "prefix" or kind == "none")
    spec = resolve(job(method, training={"globalBatchSize": batch, "activationCheckpointing": kind}), decided={})
    # At one row a step nothing is rounded: there a token more is memory more.
    short, long = (memory_of(spec, facts(model, rows=batch, length=n)).total for n in (length, length + more))
    assert short <= long or batch > 1
    assert memory_of(spec, facts(model, rows=2 * batch, length=length)).total >= 0.999 * short


@settings(max_examples=60, deadline=None)
@given(
    method=METHODS,
    model=st.sampled_from(["1b", "8b", "moe"]),
    strategy=st.sampled_from(STRATEGIES),
    gpus=st.integers(2, 7),
    length=st.integers(16, 9000),
)
def test_more_gpus_never_need_more_each(method: str, model: str, strategy: Any, gpus: int, length: int) -> None:
    known = facts(model, length=length)
    each = [
        memory_of(with_way(resolve(job(method, compute={"gpusPerNode": count}, training={"globalBatchSize": 6 * count}), decided={}), strategy, "none"), known).total
        for count in (gpus, gpus + 1)
    ]  # fmt: skip
    assert each[1] <= each[0] * 1.0001


def test_each_way_of_saving_memory_saves_some() -> None:
    known = facts("8b", length=2048)
    spec = resolve(job("full", compute={"gpusPerNode": 8}, training={"globalBatchSize": 64}), decided={})
    by_strategy = [
        memory_of(with_way(spec, strategy, "none"), known).total for strategy in ("ddp", "zero1", "zero2", "zero3")
    ]
    assert by_strategy == sorted(by_strategy, reverse=True)
    by_kind = [memory_of(with_way(spec, "ddp", kind), known).activations for kind in ("none", "selective", "full")]  # type: ignore[arg-type]
    assert by_kind == sorted(by_kind, reverse=True)
    small = memory_of(resolve(job("full", training={"optimizer": "adamw-8bit"}), decided={}), known)
    assert small.optimizer < memory_of(resolve(job("full"), decided={}), known).optimizer / 3
    assert memory_of(resolve(job("full", training={"ema": 0.9}), decided={}), known).optimizer > small.optimizer
    four, eight = (
        memory_of(resolve(job(method={"type": "qlora", "quantization": {"bits": bits}}), decided={}), known).weights
        for bits in (4, 8)
    )
    assert four < eight < memory_of(resolve(job(), decided={}), known).weights


@pytest.mark.parametrize(
    ("spec", "known", "change"),
    [
        (job(training={"activationCheckpointing": "none"}), facts("8b", length=16_000), "activationCheckpointing: "),
        (job(training={"activationCheckpointing": "none"}, compute={"gpusPerNode": 1, "gpuType": "h100", "microBatchTokens": 16384}), facts("8b", length=1024), "microBatchTokens: 8192"),
        (job("full", compute={"gpusPerNode": 1, "gpuType": "l4"}), facts("1b", length=32), "optimizer: adamw-8bit"),
        (job("full", compute={"gpusPerNode": 2, "gpuType": "a100-40gb", "strategy": "ddp"}), facts("1b", length=64), ""),
        (job("full", compute={"gpusPerNode": 8, "gpuType": "h100", "strategy": "ddp"}, training={"activationCheckpointing": "none"}), facts("8b", length=64), "strategy: "),
        (job("full"), facts("70b"), "GPUs with strategy: zero3"),
        (job(compute={"gpusPerNode": 1, "gpuType": "l4"}), facts("70b", length=256), ""),
    ],
    ids=["recompute", "smaller micro-batches", "8-bit states", "two small GPUs", "shard", "more GPUs", "far too small"],
)  # fmt: skip
def test_the_smallest_change_is_named(spec: FineTuneJobSpec, known: Any, change: str) -> None:
    whole = resolve(spec, decided=decide(spec, known)[0])
    made = estimate(whole, known)
    if not change:
        assert made.fits is (made.change is None)
        return
    assert made.fits is False
    assert made.change is not None
    assert change in made.change
    assert made.warning is not None
    assert made.warning.startswith("does not fit: ")


def test_the_largest_micro_batch_is_within_the_budget_or_one_row() -> None:
    for length, rows in ((64, 900), (3000, 900), (20_000, 16)):
        share = of_step(resolve(job(training={"globalBatchSize": rows}), decided={}), facts(rows=rows, length=length))
        assert share.tokens <= max(16384, length)
        assert share.count * share.tokens >= min(rows, 900) * length


def test_a_measured_speed_counts_for_more_than_the_table() -> None:
    known = facts("8b", rows=1000)
    guess = planned(job(), known)
    speed = Measured(tokens_per_second=1000, startup_seconds=30, evaluation_seconds=12)
    made = planned(job(), known.model_copy(update={"measured": speed}))
    assert made.duration.seconds == pytest.approx(30 + 12 + made.tokens / 1000)
    assert "measured" in made.duration.basis
    spread, before = made.duration.longest / made.duration.shortest, guess.duration.longest / guess.duration.shortest
    assert spread < before


@pytest.mark.parametrize(
    ("model", "method", "gpus", "rate"),
    [("8b", "lora", 1, 12_473), ("70b", "lora", 8, 1_092 * 8), ("8b", "full", 8, 5_762 * 8)],
    ids=["NeMo AutoModel", "NeMo AutoModel, 8 GPUs", "torchtitan, 8 GPUs"],
)
def test_the_table_stands_near_published_runs(model: str, method: str, gpus: int, rate: float) -> None:
    spec = job(method, compute={"gpusPerNode": gpus, "gpuType": "h100"}, training={"globalBatchSize": 8 * gpus})
    known = facts(model, rows=4000, length=4096, data={"trained_tokens": 4000 * 4096})
    speed = planned(spec, known).duration.tokens_per_second
    assert 0.5 < speed / rate < 1.5


def test_price_and_gpu_hours() -> None:
    made = planned(
        job(budget={"gpuHourPrice": 2.0}, compute={"nodes": 2, "gpusPerNode": 4, "gpuType": "h100"}), facts()
    )
    assert made.gpus == 8
    assert made.gpu_hours == pytest.approx(8 * made.duration.seconds / 3600)
    assert made.cost == pytest.approx(2 * made.gpu_hours)
    on_cpu = planned(job(compute={"gpusPerNode": 0}, budget={"gpuHourPrice": 2.0}), facts("toy"))
    assert (on_cpu.gpu_hours, on_cpu.cost, on_cpu.fits) == (0, 0, None)
    assert planned(job(), facts()).cost is None


def test_room_for_checkpoints() -> None:
    lora, full = (planned(job(method), facts("1b")).storage for method in ("lora", "full"))
    assert full > 4 * 12 * 1.2e9 > 10 * lora


def test_side_by_side() -> None:
    known = facts("8b", length=1024)
    methods = {row.name: row for row in compare(job(), known, by="method")}
    weights = {name: row.estimate.memory.weights for name, row in methods.items() if row.estimate is not None}
    assert weights["qlora"] < weights["lora"]
    strategies = {row.name: row for row in compare(job("qlora"), known, by="strategy")}
    assert "cannot go together" in (strategies["zero3"].refused or "")
    assert strategies["zero3"].estimate is None
    gpus = compare(job(), known, by="gpu", prices={"h100": 3.0, "h200": 4.0}, names=("h100", "h200", "t4"))
    assert [row.price for row in gpus] == [3.0, 4.0, None]
    assert gpus[0].estimate.cost == pytest.approx(3 * gpus[0].estimate.gpu_hours)  # type: ignore[union-attr]
    assert len(compare(job(), known, by="gpu")) > 5
    assert all(row.estimate for row in compare(job(), known, by="gpu", names=tuple(GPUS)))
    with pytest.raises(ValueError, match="'abacus' is no gpu: there are b300"):
        compare(job(), known, by="gpu", names=("abacus",))
