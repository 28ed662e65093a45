"""The linear layers of one transformer layer and everything else that has weights in it, from the sizes in a configuration."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.planner.families import Family


@dataclass(frozen=True, slots=True)
class Latent:
    """Attention with compressed queries and keys (DeepSeek's; https://arxiv.org/abs/2405.04434). `query` 0: queries are not compressed."""

    query: int
    key: int
    nope: int
    rope: int
    value: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of one layer: `ff` is the width of the feed-forward, of an expert with `experts`; `shared` that of experts that are always there."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ff: int
    gated: bool
    family: Family
    bias: str
    latent: Latent | None = None
    experts: int = 0
    shared: int = 0
    cross: bool = False
    sinks: bool = False
    router_bias: bool = False
    shared_gate: bool = False


Linear = tuple[int, int]
"""Inputs and outputs."""


def attention(sizes: Sizes) -> list[Linear]:
    """Its linear layers, in the form that the model holds them in."""
    h, d = sizes.hidden, sizes.head_dim
    if sizes.latent is not None:
        at = sizes.latent
        wide = sizes.heads * (at.nope + at.rope)
        query = [(h, at.query), (at.query, wide)] if at.query else [(h, wide)]
        key = [(h, at.key + at.rope), (at.key, sizes.heads * (at.nope + at.value))]
        return [*query, *key, (sizes.heads * at.value, h)]
    q, kv = sizes.heads * d, sizes.kv_heads * d
    if sizes.family.fused in ("qkv", "both"):
        return [(h, q + 2 * kv), (q, h)]
    return [(h, q), (h, kv), (h, kv), (q, h)]


def feed_forward(sizes: Sizes, width: int) -> list[Linear]:
    h = sizes.hidden
    if not sizes.gated:
        return [(h, width), (width, h)]
    if sizes.family.fused in ("ff", "both"):
        return [(h, 2 * width), (width, h)]
    return [(h, width), (h, width), (width, h)]


def adapted(sizes: Sizes, *, mixture: bool) -> list[Linear]:
    """Linear layers that adapters go to when none are named: all of them, of a mixture of experts those of attention."""
    layers = attention(sizes) * (2 if sizes.cross else 1)
    return layers if mixture else layers + feed_forward(sizes, sizes.ff)


def count(sizes: Sizes) -> int:
    """All weights of the layer."""
    return _attention(sizes) * (2 if sizes.cross else 1) + _feed_forward(sizes) + _norms(sizes)


def _attention(sizes: Sizes) -> int:
    total = _elements(attention(sizes))
    h, d = sizes.hidden, sizes.head_dim
    q, kv = sizes.heads * d, sizes.kv_heads * d
    if sizes.bias in ("qkv", "attention", "all"):
        total += q + 2 * kv + (h if sizes.bias != "qkv" else 0)
    if sizes.latent is not None:
        total += sizes.latent.query + sizes.latent.key  # their norms
    total += {"none": 0, "head": 2 * d, "whole": q + kv}[sizes.family.qk_norm]
    return total + (sizes.heads if sizes.sinks else 0)


def _feed_forward(sizes: Sizes) -> int:
    biased = sizes.bias in ("ff", "all")
    one = _elements(feed_forward(sizes, sizes.ff))
    if not sizes.experts:
        return one + ((1 + sizes.gated) * sizes.ff + sizes.hidden if biased else 0)
    if sizes.sinks:  # gpt-oss has biases in its experts
        one += 2 * sizes.ff + sizes.hidden
    total = sizes.experts * one + sizes.hidden * sizes.experts + (sizes.experts if sizes.router_bias else 0)
    if sizes.shared:
        total += _elements(feed_forward(sizes, sizes.shared)) + (sizes.hidden if sizes.shared_gate else 0)
    return total


def _norms(sizes: Sizes) -> int:
    vectors = sizes.family.norms + (1 if sizes.cross else 0)
    return vectors * sizes.hidden * (2 if sizes.family.norm_bias else 1)


def _elements(layers: list[Linear]) -> int:
    return sum(inputs * outputs for inputs, outputs in layers)
