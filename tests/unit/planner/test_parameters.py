"""How many weights a method trains."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_api.planner import flops, parameters
from finetune_api.spec import FineTuneJobSpec

from tests.unit.planner.conftest import SHAPES, facts, job

EIGHT = SHAPES["8b"]
LAYER = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336)
"""Inputs and outputs of a layer of an 8B."""


@pytest.mark.parametrize(
    ("spec", "trained"),
    [
        pytest.param(job("lora"), 16 * 32 * LAYER, id="every linear layer"),
        pytest.param(job(method={"type": "lora", "lora": {"rank": 8, "targetModules": ["all-linear"]}}), 8 * 32 * LAYER, id="all-linear"),
        pytest.param(job(method={"type": "lora", "lora": {"rank": 8, "targetModules": ["q_proj", "v_proj"]}}), 8 * 32 * (8192 + 5120), id="named layers"),
        pytest.param(job(method={"type": "lora", "lora": {"targetModules": ["q_proj"], "modulesToSave": ["lm_head"]}}), 16 * 32 * 8192 + 4096 * 128256, id="and a module trained whole"),
        pytest.param(job("dora"), 16 * 32 * LAYER + 32 * LAYER // 2, id="magnitudes"),
        pytest.param(job("prompt"), 20 * 4096, id="virtual tokens"),
        pytest.param(job("prefix"), 20 * 2 * 1024 * 32, id="keys and values"),
        pytest.param(job("full"), EIGHT.parameters, id="all"),
    ],
)  # fmt: skip
def test_trainable_parameters(spec: FineTuneJobSpec, trained: int) -> None:
    assert parameters.count(spec, EIGHT).trainable == trained


def test_frozen_layers_are_not_trained() -> None:
    whole = parameters.count(job("full"), EIGHT).trainable
    some = parameters.count(job(method={"type": "full", "freeze": {"layers": [0, 1, 99]}}), EIGHT).trainable
    last = parameters.count(job(method={"type": "full", "freeze": {"allButLast": 2}}), EIGHT).trainable
    assert whole - some == 2 * parameters.layer(EIGHT)
    assert last == pytest.approx(2 * parameters.layer(EIGHT) + 4096 * 128256, rel=1e-3)


@pytest.mark.parametrize(
    ("model", "method", "billions"),
    [("8b", "full", 48.2), ("8b", "lora", 33.2), ("70b", "full", 433), ("70b", "lora", 294), ("1b", "full", 8.2), ("1b", "lora", 5.7)],
)  # fmt: skip
def test_operations_a_token_are_those_of_the_reference(model: str, method: str, billions: float) -> None:
    """4,096 tokens, all of them trained; reference/trainer.md, section 2.2."""
    known = facts(model, rows=4, length=4096, data={"trained_tokens": 4 * 4096})
    made = flops.of_epoch(job(method), known.model, known.data)
    assert made.model / known.data.tokens == pytest.approx(billions * 1e9, rel=0.02)


def test_a_mixture_computes_with_the_experts_that_a_token_sees() -> None:
    assert flops.active(SHAPES["moe"]) == pytest.approx(2.7e9, rel=0.05), (
        "Qwen3-30B-A3B has 3.3 billion with its tables"
    )


def test_windows_and_recomputation() -> None:
    def operations(window: int = 0, windowed: int = 0, **training: Any) -> flops.Flops:
        shape = EIGHT.model_copy(update={"sliding_window": window, "windowed_layers": windowed})
        known = facts(shape, rows=2, length=8192)
        return flops.of_epoch(job(training=training), known.model, known.data)

    assert operations(1024, 32).model < operations(1024, 16).model < operations().model
    none, selective, full = (operations(activationCheckpointing=kind) for kind in ("none", "selective", "full"))
    assert none.hardware < selective.hardware < full.hardware
    assert none.model == full.model
