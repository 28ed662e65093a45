"""Each notch down the memory ladder is a plan that works, needs less memory and trains the same."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from finetune_api.combinations import refused
from finetune_api.compute import Strategy
from finetune_api.effective import resolve
from finetune_api.planner import ladder
from finetune_api.planner.decide import decide
from finetune_api.planner.facts import PlanFacts
from finetune_api.planner.ladder import Bottom, Notch, apply
from finetune_api.planner.memory import memory_of
from finetune_api.spec import FineTuneJobSpec
from finetune_api.training import ActivationCheckpointing
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.planner.conftest import SHAPES, facts, job

GIB = 2**30


def walk(
    wanted: FineTuneJobSpec, known: PlanFacts, notches: list[Notch] | None = None
) -> tuple[FineTuneJobSpec, list[Notch], str]:
    """Take notches for GPU memory to the bottom: the resolved spec, the notches, the last sentence."""
    spec = resolve(wanted, None, decide(wanted, known)[0])
    notches = notches or []
    for _ in range(40):
        step = ladder.next_gpu_notch(spec, known, notches, given=wanted)
        if isinstance(step, Bottom):
            return spec, notches, step.sentence
        notches.append(Notch.model_validate(json.loads(json.dumps(step.wire()))))
    raise AssertionError("the ladder has no bottom")


@st.composite
def jobs(draw: st.DrawFn) -> tuple[FineTuneJobSpec, PlanFacts]:
    gpus = draw(st.sampled_from([0, 1, 2, 8]))
    compute: dict[str, Any] = {"gpusPerNode": gpus, "nodes": draw(st.sampled_from([1, 2]))}
    if not gpus:
        compute["processesPerNode"] = draw(st.sampled_from([1, 2]))
    elif gpu := draw(st.sampled_from(["h100", "l4", None])):
        compute["gpuType"] = gpu
    training: dict[str, Any] = {"globalBatchSize": draw(st.sampled_from([8, 64]))}
    for group, name, values in (
        (compute, "strategy", get_args(Strategy)),
        (compute, "microBatchTokens", [1000, 16384]),
        (training, "activationCheckpointing", get_args(ActivationCheckpointing)),
        (training, "optimizer", ["adamw", "adamw-8bit", "adafactor"]),
        (training, "compile", [True]),
    ):
        if draw(st.integers(0, 3)) == 0:
            group[name] = draw(st.sampled_from(values))
    method = draw(st.sampled_from(["lora", "qlora", "dora", "prefix", "prompt", "full"]))
    known = facts(draw(st.sampled_from(sorted(SHAPES))), length=draw(st.sampled_from([64, 700, 8192])))
    try:
        wanted = job(method, compute=compute, training=training)
    except ValueError:
        return job(method), known
    return wanted, known


@settings(max_examples=150, deadline=None)
@given(jobs())
def test_every_notch_is_a_plan_that_needs_less_memory(drawn: tuple[FineTuneJobSpec, PlanFacts]) -> None:
    wanted, known = drawn
    spec, notches, sentence = walk(wanted, known)
    if any(refused(spec)):
        return
    before, plan = memory_of(spec, known).total, spec
    for count, notch in enumerate(notches, start=1):
        changed = apply(spec, notches[:count], given=wanted)
        assert not any(refused(changed))
        assert memory_of(changed, known).total == notch.predicted_bytes < before
        assert apply(changed, notches[:count]) == changed, "idempotent"
        assert apply(changed, [notch]) == changed
        assert notch.field != "compute.microBatchTokens" or int(notch.after) >= known.data.longest
        before, plan = notch.predicted_bytes, changed
    same = {"compute": spec.compute, "training": plan.training.model_copy(
        update={"activation_checkpointing": spec.training.activation_checkpointing}
    )}  # fmt: skip
    assert plan.model_copy(update=same) == spec, "nothing changes that training depends on"
    assert (plan.compute.nodes, plan.compute.processes_per_node) == (
        spec.compute.nodes,
        spec.compute.processes_per_node,
    )
    for name in ("strategy", "micro_batch_tokens"):
        if (value := getattr(wanted.compute, name)) is not None:
            assert getattr(plan.compute, name) == value
    assert wanted.training.activation_checkpointing in (None, plan.training.activation_checkpointing)
    assert "no notch is left" in sentence


ONE = {"gpusPerNode": 1, "gpuType": "h100"}
EIGHT = {"gpusPerNode": 8, "gpuType": "h100"}
CPUS = {"device": "cpu", "processesPerNode": 2}


@pytest.mark.parametrize(
    ("wanted", "known", "order", "last"),
    [
        (
            job("lora", compute=ONE), facts("8b", length=512),
            ["microBatchTokens 4096", "microBatchTokens 2048", "microBatchTokens 1024", "microBatchTokens 512", "activationCheckpointing selective",
             "offload.parameters cpu", "offload.optimizer cpu", "activationCheckpointing full"],
            "Check that nothing else uses the GPU: 75 GiB",
        ),
        (
            job("full", compute=EIGHT), facts("8b", length=2048),
            ["strategy fsdp2", "activationCheckpointing selective", "offload.optimizer cpu", "activationCheckpointing full",
             "microBatchTokens 2048"],
            "a GPU with 93 GiB (gpuType: h100-nvl)",
        ),
        (
            job("qlora", compute=ONE), facts("70b", length=2048),
            ["microBatchTokens 4096", "microBatchTokens 2048", "activationCheckpointing full"],
            "the estimate is 47 GiB a GPU with spec.compute.strategy ddp",
        ),
        (
            job("lora", compute=EIGHT | {"strategy": "zero2", "microBatchTokens": 8192}), facts("70b", length=2048), [],
            "12 GPUs with strategy: zero3 and activationCheckpointing: full; or a GPU with 256 GiB (gpuType: mi325x); or spec.method.type: qlora with "
            "activationCheckpointing: full. The job sets spec.compute.microBatchTokens and spec.compute.strategy, so they were kept: lower or remove them.",
        ),
        (
            job("full", compute=CPUS, training={"activationCheckpointing": "none"}), facts("1b", length=512),
            ["microBatchTokens 1024", "microBatchTokens 512", "strategy fsdp2"],
            "The job sets spec.training.activationCheckpointing, so it was kept: lower or remove it.",
        ),
    ],
    ids=["one GPU", "sharded", "no sharded weights", "kept fields", "CPUs"],
)  # fmt: skip
def test_the_order_and_what_would_fit(wanted: FineTuneJobSpec, known: PlanFacts, order: list[str], last: str) -> None:
    _, notches, sentence = walk(wanted, known)
    assert [f"{notch.field.partition('.')[2]} {notch.after}" for notch in notches] == order
    assert last in sentence


def test_a_notch_explains_itself() -> None:
    _, notches, _ = walk(job("full", compute=ONE), facts("1b", length=2048))
    by_field = {notch.field: notch for notch in notches}
    tokens = next(notch for notch in notches if notch.field == "compute.microBatchTokens")
    assert tokens.wire() == {
        "kind": "gpu",
        "field": "compute.microBatchTokens",
        "before": "16384",
        "after": "8192",
        "change": {"compute": {"microBatchTokens": 8192}},
        "predictedBytes": tokens.predicted_bytes,
        "sentence": "spec.compute.microBatchTokens is changed from 16384 to 8192; the memory estimate falls from 60 GiB to 43 GiB a GPU",
    }
    offload = by_field["compute.offload.optimizer"]
    assert offload.change == {"compute": {"strategy": "zero2", "offload": {"optimizer": "cpu"}}}
    assert "28 GiB of host memory a pod are used instead" in offload.sentence


def test_what_the_user_sets_later_replaces_a_notch() -> None:
    known = facts("8b", length=2048)
    spec, notches, _ = walk(job("full", compute=EIGHT), known)
    wanted = job("full", compute=EIGHT | {"strategy": "zero3", "microBatchTokens": 4096})
    changed = apply(resolve(wanted, None, {}), notches, given=wanted)
    assert (changed.compute.strategy, changed.compute.micro_batch_tokens) == ("zero3", 4096)
    assert changed.training.activation_checkpointing == "full"
    wanted = job("full", compute=ONE | {"strategy": "ddp"})  # with which offload cannot go
    assert apply(resolve(wanted, None, {}), notches, given=wanted).compute.offload is None
    assert spec.compute.strategy == "zero2", "nothing changes its input"


def test_host_memory_is_raised_to_the_cap() -> None:
    wanted = job(pods={"common": {"resources": {"limits": {"memory": "4Gi"}, "requests": {"memory": "2Gi"}}}})
    notches: list[Notch] = []
    for stage, cap, sizes in (
        ("prepare", None, ["6Gi 3Gi", "9Gi 4608Mi", "13824Mi 6912Mi", "16Gi 8Gi"]),
        ("publish", 5 * GIB, ["5Gi 2560Mi"]),
    ):
        for size in sizes:
            step = host(wanted, notches, stage=stage, cap=cap)
            assert isinstance(step, Notch)
            assert (step.kind, step.field) == ("host", f"pods.{stage}.resources.limits.memory")
            notches.append(Notch.model_validate_json(json.dumps(step.wire())))
            pods = apply(wanted, notches, given=wanted).pods
            assert pods is not None
            made = pods.of(stage).resources
            assert made is not None
            assert f"{(made.limits or {})['memory']} {(made.requests or {})['memory']}" == size
        step = host(wanted, notches, stage=stage, cap=cap)
        assert isinstance(step, Bottom)
        assert f"Set spec.pods.{stage}.resources.limits.memory to more than {sizes[-1].split()[0]}" in step.sentence
    later = job(pods={"prepare": {"resources": {"limits": {"memory": "64Gi"}}}})
    pods = apply(later, notches, given=later).pods
    assert pods is not None
    assert pods.of("prepare").resources.limits == {"memory": "64Gi"}  # type: ignore[union-attr]


def host(
    wanted: FineTuneJobSpec, notches: list[Notch], *, known: PlanFacts | None = None, **how: Any
) -> Notch | Bottom:
    decided = decide(wanted, known)[0] if known else {}
    memory = {"requests": {"memory": "2Gi", "cpu": "1"}, "limits": {"memory": "4Gi", "nvidia.com/gpu": 1}}
    settings: dict[str, Any] = {"stage": "train", "resources": memory} | how
    return ladder.next_host_notch(resolve(wanted, None, decided), known, notches, given=wanted, **settings)


@pytest.mark.parametrize(
    ("wanted", "known", "expected"),
    [
        (job("lora", compute=EIGHT), facts("8b"), ["processesPerNode 4", "processesPerNode 2", "processesPerNode 1", "no notch is left"]),
        (job("lora", compute=EIGHT | {"processesPerNode": 8}), facts("8b"), ["The job sets spec.compute.processesPerNode, so it was kept"]),
        (job("full", compute=EIGHT), facts("8b", length=2048), ["4Gi for each pod of stage train (the most that the platform allows), and no notch is left"]),
        (job("full", compute=EIGHT | {"processesPerNode": 8, "strategy": "fsdp2", "offload": {"optimizer": "cpu"}}), facts("8b"),
         ["The job sets spec.compute.processesPerNode and spec.compute.offload.optimizer, so they were kept"]),
        (job("full", compute={"device": "cpu"}), facts("1b"), ["microBatchTokens 1024", "microBatchTokens 512", "activationCheckpointing selective", "no notch is left"]),
    ],
    ids=["fewer processes", "processes that are set", "as GPU memory allows", "offload that is set", "CPUs"],
)  # fmt: skip
def test_after_the_cap_the_training_needs_less_host_memory(
    wanted: FineTuneJobSpec, known: PlanFacts, expected: list[str]
) -> None:
    notches: list[Notch] = []
    for text in expected:
        step = host(wanted, notches, known=known, cap=4 * GIB)
        if isinstance(step, Bottom):
            assert text in step.sentence
        else:
            assert (step.kind, f"{step.field.partition('.')[2]} {step.after}") == ("host", text)
            notches.append(step)


def test_offload_that_the_host_has_no_room_for_is_not_tried_again() -> None:
    wanted, known = job("lora", compute=ONE), facts("8b", length=512)
    spec, notches, _ = walk(wanted, known)
    taken = notches[: next(i for i, one in enumerate(notches) if "offload" in one.field) + 1]
    off = Notch(
        kind="host", field=taken[-1].field, before="cpu", after="none",
        change={"compute": {"offload": {"parameters": "none"}}}, sentence="",
    )  # fmt: skip
    step = ladder.next_gpu_notch(spec, known, [*taken, off], given=wanted)
    assert isinstance(step, Bottom) or "offload" not in step.field


@pytest.mark.parametrize(
    ("text", "size"),
    [("512Mi", 512 * 2**20), ("1.5Gi", 3 * 2**29), ("1e9", 10**9), ("2G", 2 * 10**9), (1024, 1024), ("128974848000m", 128974848)],
)  # fmt: skip
def test_quantities(text: int | str, size: int) -> None:
    assert ladder.size_of(text) == size
    with pytest.raises(ValueError, match="no amount of memory"):
        ladder.size_of("much")
