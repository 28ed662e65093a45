"""From a config.json to the sizes that plans are made from, by the names of its fields, whatever the model's class.

Fields that say the same have a handful of names over all families; `families` knows what is said by the type alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from finetune_api.planner import layers
from finetune_api.planner.facts import ModelShape
from finetune_api.planner.families import Family, family_of
from finetune_api.planner.layers import Latent, Sizes

_HIDDEN = ("hidden_size", "d_model", "n_embd", "dim")
_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers", "encoder_layers")
_HEADS = ("num_attention_heads", "num_heads", "n_head", "n_heads", "decoder_attention_heads", "encoder_attention_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
_HEAD_DIM = ("head_dim", "d_kv")
_FF = ("intermediate_size", "ffn_dim", "d_ff", "n_inner", "decoder_ffn_dim", "encoder_ffn_dim", "ffn_hidden_size", "hidden_dim")  # fmt: skip
_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_topk")
_TEXT = ("text_config", "llm_config", "language_config")
_ENCODERS = ("t5", "mt5", "umt5", "bart", "mbart", "pegasus")
_BOUNDLESS = ("t5", "mt5", "umt5")
"""Types whose positions are relative: any length will do."""


def shape_of(config: Mapping[str, Any], *, parameters: int | None = None, weight_bytes: int = 0) -> ModelShape:
    """`parameters`: as counted in the files; None: by the sizes. Raises ValueError with a sentence that names what is missing."""
    config = _text(config)
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise ValueError("it names no model_type")
    family = family_of(kind)
    config = {**family.sizes, **{name: value for name, value in config.items() if value is not None}}
    sizes = _sizes(config, kind, family)
    both = bool(config.get("is_encoder_decoder")) or kind in _ENCODERS
    depth = _decoder_layers(config, both=both)
    encoder = _need(config, ("encoder_layers", *_LAYERS), "layers") if both else 0
    experts, dense = sizes.experts, _dense_layers(config, depth) if sizes.experts else 0
    window, windowed = _window(config, kind, depth)
    vocabulary = _need(config, ("vocab_size",), "vocab_size")
    tied = kind in _BOUNDLESS or bool(config.get("tie_word_embeddings", family.tied))
    full = _first(config, _FF) or sizes.ff
    shape = ModelShape(
        model_type=kind,
        hidden_size=sizes.hidden,
        layers=depth,
        encoder_layers=encoder,
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        intermediate_size=full,
        gated=sizes.gated,
        vocab_size=vocabulary,
        tied=tied,
        experts=experts,
        experts_per_token=_first(config, _PER_TOKEN) or (1 if experts else 0),
        expert_intermediate_size=sizes.ff if experts else 0,
        shared_expert_intermediate_size=sizes.shared,
        dense_layers=dense,
        sliding_window=window,
        windowed_layers=windowed,
        context_length=0 if kind in _BOUNDLESS else _first(config, _CONTEXT) or 0,
        parameters=1,
        weight_bytes=weight_bytes,
    )
    stack = _stack(sizes, shape, both=both)
    return shape.model_copy(
        update={
            "parameters": parameters
            or sum(n * layers.count(one) for one, n in stack) + _outside(config, shape, family),
            "linear_in_out": sum(n * sum(map(sum, layers.adapted(one, mixture=experts > 0))) for one, n in stack),
        }
    )


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part of a model of several kinds of input."""
    for name in _TEXT:
        inner = config.get(name)
        if isinstance(inner, Mapping) and inner:
            outside = {key: config[key] for key in ("tie_word_embeddings",) if key in config}
            return {"model_type": config.get("model_type"), **outside, **inner}
    return config


def _sizes(config: Mapping[str, Any], kind: str, family: Family) -> Sizes:
    """Of one layer; of a mixture of experts, one that has them."""
    hidden = _need(config, _HIDDEN, "hidden_size")
    heads = _need(config, _HEADS, "num_attention_heads")
    experts = _first(config, _EXPERTS) or 0
    ff = _first(config, ("moe_intermediate_size",)) if experts else None
    ff = ff or _first(config, _FF) or 4 * hidden
    return Sizes(
        hidden=hidden,
        heads=heads,
        kv_heads=_kv_heads(config, kind, heads),
        head_dim=_first(config, _HEAD_DIM) or max(1, hidden // heads),
        ff=ff,
        gated=_gated(config, family),
        family=family,
        bias=_bias(config, family),
        latent=_latent(config),
        experts=experts,
        shared=_shared(config, ff) if experts else 0,
        sinks=kind == "gpt_oss",
        router_bias=kind == "gpt_oss",
        shared_gate=kind == "qwen2_moe",
    )


def _kv_heads(config: Mapping[str, Any], kind: str, heads: int) -> int:
    if kind == "falcon" and not config.get("new_decoder_architecture"):
        return 1 if config.get("multi_query", True) else heads
    if kind == "gpt_bigcode" and config.get("multi_query", True):
        return 1
    return _first(config, _KV_HEADS) or heads


def _gated(config: Mapping[str, Any], family: Family) -> bool:
    projection = config.get("feed_forward_proj")
    if isinstance(projection, str):  # T5's way to say so
        return projection.startswith("gated")
    return family.gated


def _bias(config: Mapping[str, Any], family: Family) -> str:
    """What the configuration says of biases, else what its type has."""
    if config.get("enable_bias") is False or config.get("use_bias") is False:
        return "none"
    attention = config.get("attention_bias")
    if isinstance(attention, bool) and family.bias in ("none", "attention"):
        both = attention and bool(config.get("mlp_bias"))
        return "all" if both else "attention" if attention else "none"
    if config.get("bias") is True:
        return "all"
    return family.bias


def _latent(config: Mapping[str, Any]) -> Latent | None:
    key = _first(config, ("kv_lora_rank",))
    if not key:
        return None
    return Latent(
        query=_first(config, ("q_lora_rank",)) or 0,
        key=key,
        nope=_need(config, ("qk_nope_head_dim",), "qk_nope_head_dim"),
        rope=_need(config, ("qk_rope_head_dim",), "qk_rope_head_dim"),
        value=_need(config, ("v_head_dim",), "v_head_dim"),
    )


def _shared(config: Mapping[str, Any], ff: int) -> int:
    """Width of the experts that see every token."""
    own = _first(config, ("shared_expert_intermediate_size", "shared_intermediate_size"))
    return own or ff * (_first(config, ("n_shared_experts", "num_shared_experts")) or 0)


def _decoder_layers(config: Mapping[str, Any], *, both: bool) -> int:
    names = ("num_decoder_layers", "decoder_layers", *_LAYERS) if both else _LAYERS
    return _need(config, names, "num_hidden_layers")


def _dense_layers(config: Mapping[str, Any], depth: int) -> int:
    every = _first(config, ("decoder_sparse_step", "interleave_moe_layer_step")) or 1
    named = config.get("mlp_only_layers")
    plain = set(named if isinstance(named, list) else ()) | set(range(_first(config, ("first_k_dense_replace",)) or 0))
    return sum(1 for layer in range(depth) if layer in plain or (layer + 1) % every)


def _window(config: Mapping[str, Any], kind: str, depth: int) -> tuple[int, int]:
    """Its width in tokens, and how many layers have it."""
    width = _first(config, ("sliding_window", "local_attention", "window_size"))
    if not width or config.get("use_sliding_window") is False:
        return 0, 0
    kinds = config.get("layer_types")
    if isinstance(kinds, list):
        windowed = sum(1 for one in kinds if "sliding" in str(one) or "local" in str(one))
        return (width, windowed) if windowed else (0, 0)
    every = _first(config, ("sliding_window_pattern", "_sliding_window_pattern", "global_attn_every_n_layers"))
    every = every or {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "gpt_oss": 2, "cohere2": 4}.get(kind)
    if every:
        return width, depth - depth // every
    types = config.get("attention_types")
    if isinstance(types, list):  # GPT-Neo: [[[kind, ...], times], ...]
        return width, sum(times * kinds.count("local") for kinds, times in types)
    return width, depth if kind != "qwen2" else max(0, depth - (_first(config, ("max_window_layers",)) or 0))


def _stack(sizes: Sizes, shape: ModelShape, *, both: bool) -> list[tuple[Sizes, int]]:
    """Each kind of layer with how many there are."""
    if both:
        return [(sizes, shape.encoder_layers), (dataclasses.replace(sizes, cross=True), shape.layers)]
    if not shape.experts:
        return [(sizes, shape.layers)]
    plain = dataclasses.replace(sizes, experts=0, shared=0, ff=shape.intermediate_size)
    return [(sizes, shape.layers - shape.dense_layers), (plain, shape.dense_layers)]


def _outside(config: Mapping[str, Any], shape: ModelShape, family: Family) -> int:
    """Weights outside the layers: tables, the last norms, heads."""
    h, both = shape.hidden_size, shape.encoder_layers > 0
    stacks = 2 if both else 1
    width = _first(config, ("word_embed_proj_dim", "embedding_size")) or h
    total = shape.vocab_size * width * (1 if shape.tied else 2)
    if width != h:
        total += 2 * width * h
    if family.positions is not None and not config.get("alibi"):
        total += stacks * ((_first(config, _CONTEXT) or 0) + family.positions) * h
    total += (_first(config, ("type_vocab_size",)) or 0) * h
    total += stacks * family.ends * h * (2 if family.norm_bias else 1)
    buckets = _first(config, ("relative_attention_num_buckets",))
    if buckets:
        total += buckets * shape.heads * (shape.layers + shape.encoder_layers if shape.model_type == "umt5" else 2)
    return total + (h * h + h if family.pooler else 0)


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    """The first of some fields that is a positive whole number."""
    for name in names:
        value = config.get(name)
        if isinstance(value, list) and value and all(isinstance(one, int) for one in value):
            value = max(value)  # a size for each layer
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _need(config: Mapping[str, Any], names: tuple[str, ...], said: str) -> int:
    found = _first(config, names)
    if found is None:
        raise ValueError(
            f"it names no {said} (or {', '.join(name for name in names if name != said)})".replace(" (or )", "")
        )
    return found
