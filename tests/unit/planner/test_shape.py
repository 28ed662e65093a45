"""Shapes from what a config.json says and leaves unsaid. Counts stand beside transformers' own in tests/trainer/planner."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_api.planner.gpus import GPUS, bytes_of, gpu_of
from finetune_api.planner.shape import shape_of

from tests.unit.planner.conftest import LLAMA

SMALL = LLAMA | {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        pytest.param(SMALL, {"kv_heads": 4, "head_dim": 16, "intermediate_size": 256}, id="what is left out"),
        pytest.param(SMALL | {"num_key_value_heads": 2}, {"kv_heads": 2}, id="grouped attention"),
        pytest.param(SMALL | {"tie_word_embeddings": True}, {"tied": True}, id="tied"),
        pytest.param(SMALL | {"sliding_window": 128}, {"sliding_window": 128, "windowed_layers": 4}, id="all windowed"),
        pytest.param(SMALL | {"sliding_window": 128, "use_sliding_window": False}, {"sliding_window": 0}, id="switched off"),
        pytest.param(
            SMALL | {"sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"] * 2},
            {"windowed_layers": 2},
            id="some windowed",
        ),
        pytest.param({"model_type": "gemma2", **{k: SMALL[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")}, "sliding_window": 64}, {"windowed_layers": 2, "tied": True}, id="every other one, by type"),
        pytest.param(
            {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}, "vision_config": {"hidden_size": 1152}},
            {"model_type": "gemma3_text", "heads": 8, "kv_heads": 4, "head_dim": 256, "vocab_size": 262208, "windowed_layers": 29},
            id="the text part of a model of images",
        ),
        pytest.param(
            {"model_type": "t5", "d_model": 64, "d_ff": 128, "d_kv": 16, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4, "vocab_size": 100},
            {"encoder_layers": 3, "layers": 2, "context_length": 0, "gated": False},
            id="encoder and decoder",
        ),
        pytest.param(
            SMALL | {"model_type": "deepseek_v3", "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 1, "first_k_dense_replace": 1, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8},
            {"experts": 8, "experts_per_token": 2, "dense_layers": 1, "shared_expert_intermediate_size": 32},
            id="experts",
        ),
        pytest.param({"model_type": "made_up", "d_model": 32, "n_layers": 2, "n_heads": 2, "vocab_size": 50}, {"hidden_size": 32, "layers": 2}, id="a type that nobody knows"),
    ],
)  # fmt: skip
def test_a_shape_by_its_fields(config: dict[str, Any], expected: dict[str, Any]) -> None:
    shape = shape_of(config)
    assert {name: getattr(shape, name) for name in expected} == expected


def test_what_the_files_hold_counts_for_more_than_the_formula() -> None:
    assert shape_of(SMALL, parameters=12345, weight_bytes=24690).parameters == 12345


@pytest.mark.parametrize(
    "missing", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "model_type"]
)
def test_what_is_missing_is_named(missing: str) -> None:
    with pytest.raises(ValueError, match=f"it names no {missing}"):
        shape_of({name: value for name, value in SMALL.items() if name != missing})


def test_gpus_are_what_their_names_say() -> None:
    for name, gpu in GPUS.items():
        assert gpu.name == name
        assert 10e12 < gpu.flops < 1e16
        assert gpu.link <= gpu.bandwidth
    assert gpu_of("a100") is GPUS["a100-80gb"]
    assert gpu_of("abacus") is None is gpu_of(None)
    assert bytes_of("80Gi") == 80 * 2**30
    with pytest.raises(ValueError, match="write 80Gi"):
        bytes_of("80")
