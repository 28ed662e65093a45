"""Tiny random models of several families, and rows for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

VOCABULARY = 97
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
_GROUPED = _SIZES | {"num_key_value_heads": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _GROUPED),
    "qwen3": ("Qwen3Config", _GROUPED | {"head_dim": 8, "tie_word_embeddings": True}),
    "mistral": ("MistralConfig", _GROUPED | {"sliding_window": 6}),
    "gemma": ("GemmaConfig", _GROUPED | {"head_dim": 8}),
    "gemma2": ("Gemma2Config", _GROUPED | {"head_dim": 8, "sliding_window": 6, "final_logit_softcapping": 3.0}),
    "gemma3": ("Gemma3TextConfig", _GROUPED | {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]}),
    "cohere": ("CohereConfig", _GROUPED | {"logit_scale": 0.25}),
    "granite": ("GraniteConfig", _GROUPED | {"logits_scaling": 8.0}),
    "phi": ("PhiConfig", _SIZES),
    "gpt2": ("GPT2Config", {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "opt": ("OPTConfig", _SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "mixtral": ("MixtralConfig", _GROUPED | {"num_local_experts": 4}),
    "qwen2-moe": (
        "Qwen2MoeConfig",
        _GROUPED | {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    ),
    "llama4": ("Llama4TextConfig", _GROUPED | {"num_local_experts": 2, "intermediate_size_mlp": 48, "head_dim": 8}),
    "mamba": ("MambaConfig", {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
}


@pytest.fixture
def make_model() -> Callable[..., nn.Module]:
    """A model of a family, in evaluation mode, with logits large enough to tell heads apart."""
    import transformers

    def make(family: str, **changes: Any) -> nn.Module:
        name, sizes = FAMILIES[family]
        torch.manual_seed(0)
        config = getattr(transformers, name)(**(sizes | {"initializer_range": 0.2} | changes))
        return transformers.AutoModelForCausalLM.from_config(config).eval()

    return make


@pytest.fixture
def rows() -> list[np.ndarray]:
    """Token ids of mixed lengths."""
    draw = np.random.default_rng(1)
    return [draw.integers(2, VOCABULARY, size=length).astype(np.int32) for length in (5, 17, 9, 2)]


@pytest.fixture
def trained(rows: list[np.ndarray]) -> list[np.ndarray]:
    """Of each row, the indices of the tokens that count: the last part of each, and none of one row."""
    return [
        np.arange(len(row) // 2 + 1, len(row)) if i != 2 else np.zeros(0, dtype=np.int64) for i, row in enumerate(rows)
    ]


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of every trainable parameter, by name."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same_gradients(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    assert mine.keys() == theirs.keys()
    for name, grad in mine.items():
        torch.testing.assert_close(
            grad, theirs[name], rtol=1e-4, atol=tolerance * max(1.0, float(theirs[name].abs().max())), msg=name
        )
