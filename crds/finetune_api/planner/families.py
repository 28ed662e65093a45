"""What a config.json leaves unsaid, by `model_type`: where biases and norms are, whether positions are learnt, what is tied.

A type that is not listed is taken for one like llama's, which most new ones are. `sizes` are values that files of the type
leave out because they are its class's defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from finetune_api.planner.facts import ModelShape

Bias = Literal["none", "qkv", "attention", "ff", "all"]


@dataclass(frozen=True, slots=True)
class Family:
    """`norms` are vectors of hidden size in a layer's norms; with `norm_bias` each has a twin. `ends` are those of the final
    norm and of the embeddings' norm. `positions` are learnt positions beyond `max_position_embeddings`; None: there are none.
    `norm_in_fp32`: a norm's weight is multiplied before the result is rounded. `fused`: query, key and value are one layer (qkv), gate and up of the feed-forward are (ff), or both.
    """

    bias: Bias = "none"
    norms: int = 2
    norm_bias: bool = False
    ends: int = 1
    positions: int | None = None
    gated: bool = True
    tied: bool = False
    qk_norm: Literal["none", "head", "whole"] = "none"
    norm_in_fp32: bool = False
    pooler: bool = False
    fused: Literal["none", "qkv", "ff", "both"] = "none"
    sizes: Mapping[str, int] = field(default_factory=dict)


_CLASSIC = {"norm_bias": True, "gated": False, "bias": "all"}
_ENCODER = Family(**_CLASSIC, positions=0, tied=True, pooler=True)  # type: ignore[arg-type]
_GEMMA_3 = Family(norms=4, tied=True, qk_norm="head", norm_in_fp32=True, sizes={
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208, "hidden_size": 2304,
    "intermediate_size": 9216, "num_hidden_layers": 26, "sliding_window": 4096, "max_position_embeddings": 131072,
})  # fmt: skip
_LLAMA = Family()
_QWEN_3 = Family(qk_norm="head")

FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "phi3": Family(fused="both"),
    "qwen2": Family(bias="qkv"),
    "qwen2_moe": Family(bias="qkv"),
    "qwen3": _QWEN_3,
    "qwen3_moe": _QWEN_3,
    "gemma": Family(tied=True, norm_in_fp32=True),
    "gemma2": Family(norms=4, tied=True, norm_in_fp32=True),
    "gemma3": _GEMMA_3,
    "gemma3_text": _GEMMA_3,
    "olmo": Family(norms=0, ends=0),
    "olmo2": Family(qk_norm="whole", norm_in_fp32=True),
    "olmo3": Family(qk_norm="whole", norm_in_fp32=True),
    "olmoe": Family(qk_norm="whole"),
    "cohere": Family(norms=1, tied=True),
    "gpt_oss": Family(bias="attention"),
    "glm": Family(bias="qkv", fused="ff"),
    "glm4": Family(bias="qkv", norms=4, fused="ff"),
    "stablelm": Family(norm_bias=True),
    "starcoder2": Family(**_CLASSIC, tied=True),  # type: ignore[arg-type]
    "phi": Family(bias="all", norms=1, norm_bias=True, gated=False),
    "gpt2": Family(**_CLASSIC, positions=0, tied=True, fused="qkv"),  # type: ignore[arg-type]
    "gpt_bigcode": Family(**_CLASSIC, positions=0, tied=True, fused="qkv"),  # type: ignore[arg-type]
    "gpt_neo": Family(bias="ff", norm_bias=True, gated=False, positions=0, tied=True),
    "gpt_neox": Family(**_CLASSIC, fused="qkv"),  # type: ignore[arg-type]
    "gptj": Family(bias="ff", norms=1, norm_bias=True, gated=False),
    "opt": Family(**_CLASSIC, positions=2, tied=True),  # type: ignore[arg-type]
    "bloom": Family(**_CLASSIC, ends=2, tied=True, fused="qkv"),  # type: ignore[arg-type]
    "falcon": Family(norms=1, norm_bias=True, gated=False, tied=True, fused="qkv"),
    "mpt": Family(norms=2, gated=False, tied=True, fused="qkv"),
    "t5": Family(gated=False, tied=True, sizes={"relative_attention_num_buckets": 32}),
    "mt5": Family(tied=True, sizes={"relative_attention_num_buckets": 32}),
    "umt5": Family(tied=True, sizes={"relative_attention_num_buckets": 32}),
    "bart": Family(**_CLASSIC, positions=2, tied=True),  # type: ignore[arg-type]
    "mbart": Family(**_CLASSIC, positions=2, ends=2, tied=True),  # type: ignore[arg-type]
    "pegasus": Family(**_CLASSIC, tied=True),  # type: ignore[arg-type]
    "bert": _ENCODER,
    "roberta": _ENCODER,
    "xlm-roberta": _ENCODER,
    "camembert": _ENCODER,
    "electra": _ENCODER,
    "distilbert": _ENCODER,
    "modernbert": Family(tied=True, pooler=True, fused="both"),
}


EAGER = frozenset({
    "bloom", "codegen", "gemma2", "gpt_neo", "gpt_neox_japanese", "gpt_oss", "gptj", "granite_swa", "granitemoe_swa", "longt5",
    "mpnet", "mpt", "openai-gpt", "prophetnet", "rembert", "switch_transformers", "t5gemma", "vaultgemma", "xglm",
    "big_bird", "deberta", "deberta-v2", "deepseek_v4", "megatron-bert", "mimo_v2_flash", "hy_v4", "roformer",
})  # fmt: skip
"""Types for which transformers has no fused attention (`_supports_sdpa`): each layer makes the weights of every pair of tokens of a row."""


def family_of(model_type: str) -> Family:
    return FAMILIES.get(model_type, _LLAMA)


def is_eager(model: ModelShape) -> bool:
    """Whether attention is made of separate products, with the weights of all pairs of tokens of a row in memory."""
    return model.model_type in EAGER if model.fused_attention is None else not model.fused_attention
