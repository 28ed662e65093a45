"""The planner's formulas for a GPU against the trainer's own step, computed with tensors that have no values (make bench-plan)."""

from __future__ import annotations

import contextlib
from unittest import mock

import pytest
import torch
from finetune_api.planner.families import EAGER

from benchmarks.plan.fake_gpu import fake_gpu
from benchmarks.plan.gpu_cases import AGAIN, MODELS, SELECTIVE, GpuCase
from benchmarks.plan.gpu_memory import compare

_ENGINE = torch.autograd._engine_run_backward
_SMALL = {"num_hidden_layers": 3}

CASES = (
    GpuCase("Llama-3.2-1B", "full", 4, 2048),
    GpuCase("Llama-3.2-1B", "lora", 2, 4096),
    GpuCase("Qwen3-8B", "qlora", 1, 4096, SELECTIVE),
    GpuCase("Qwen3-30B-A3B", "lora", 1, 4096),
    GpuCase("Gemma-2-2B", "full", 2, 1024),
    GpuCase("gpt-oss-20b", "lora", 1, 4096),
    GpuCase("gpt-oss-20b", "lora", 1, 4096, AGAIN),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_predicted_peak_is_that_of_the_trainers_step(case: GpuCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer layers than the real models have, to be quick."""
    monkeypatch.setitem(MODELS, case.model, MODELS[case.model] | _SMALL)
    found = compare(case)
    assert abs(found.error) <= 0.06, f"{found.memory.parts()} against {found.measured} at {found.at}"


def test_the_backward_in_python_holds_what_the_engine_in_cpp_does() -> None:
    """On fake CPU tensors, which the engine takes."""
    peaks = [_peak_of_a_backward(own) for own in (True, False)]
    assert peaks[0] == pytest.approx(peaks[1], rel=0.02)


def _peak_of_a_backward(own: bool) -> int:
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = MODELS["Llama-3.2-1B"] | _SMALL
    config = AutoConfig.for_model("llama", **{name: value for name, value in settings.items() if name != "model_type"})
    with fake_gpu("cpu") as live:
        model = AutoModelForCausalLM.from_config(config)
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        loss = model(torch.ones((1, 512), dtype=torch.long), use_cache=False).logits.float().sum()
        live.reset()
        with contextlib.nullcontext() if own else mock.patch("torch.autograd._engine_run_backward", _ENGINE):
            loss.backward()
        return live.peak


def test_types_without_fused_attention_are_those_of_the_library() -> None:
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    known = {config["model_type"] for config in MODELS.values()}
    for kind in sorted(known | (EAGER & set(NAMES))):
        assert getattr(transformers, NAMES[kind])._supports_sdpa == (kind not in EAGER), kind
