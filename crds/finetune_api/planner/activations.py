"""What autograd keeps between forward and backward, by token and layer, in transformers' eager code.

Counted tensor by tensor, and checked with hooks on what is saved (docs/planning.md has the table). h: hidden size, q and kv:
heads times head size, f: width of the feed-forward. Three kinds of training keep differently much: where weights are trained
every product keeps its input; beside adapters only adapted layers do, and norms keep no normalised copy; below virtual
tokens alone products keep nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from finetune_api.method import LOW_RANK, LoraSpec
from finetune_api.planner.facts import ModelShape, PlanFacts
from finetune_api.planner.families import family_of
from finetune_api.planner.share import Share, device_of
from finetune_api.spec import FineTuneJobSpec

Kind = Literal["full", "adapters", "virtual"]

_COMPOSED = ("gpt2", "gpt_neo", "gptj", "phi", "gpt_bigcode", "codegen")
"""Types whose activation is written as several operations, each of which keeps something (gelu_new)."""
_KEEPS_OUTPUT = ("opt", "t5")
"""Types with ReLU, which keeps its output alone."""
_DROPPING = ("gpt2", "bart", "mbart", "opt", "bert", "roberta", "distilbert", "t5", "mt5", "umt5", "gpt_bigcode")
"""Types that are made with dropout on what layers add, which keeps a mask of a byte each."""
_SCORING = {"t5": 3, "mt5": 3, "umt5": 3, "gpt2": 3, "gemma2": 2}
"""Types whose attention weights are kept, so many times: for position biases, caps, or dropout on them, which no fused kernel for
CPUs does."""


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes: `saved` of the whole model at the end of the forward, `layer` those that come and go in the backward of one layer."""

    saved: int
    layer: int


def activations(spec: FineTuneJobSpec, facts: PlanFacts, share: Share) -> Activations:
    """Of one micro-batch."""
    model, low = facts.model, low_of(spec)
    each = layer_bytes(spec, facts, share) * share.tokens
    stream = _stream(spec) * model.hidden_size * share.tokens
    layers = _layers(spec, model)
    if model.encoder_layers:
        each = int(each * 1.25)  # the decoder has two attentions
    ends = 3 * stream
    moving = low * share.tokens * (2 * width(model) + 2 * model.hidden_size)
    kind = spec.training.activation_checkpointing or "none"
    if kind == "none":
        return Activations(layers * each + ends, moving)
    kept = stream
    if kind == "selective":
        kept += (low * model.heads * model.head_dim + 4 * model.heads) * share.tokens
    return Activations(layers * kept + ends, each + moving)


def layer_bytes(spec: FineTuneJobSpec, facts: PlanFacts, share: Share) -> int:
    """Kept of one token in one layer."""
    if low_of(spec) == 4:
        elements = _norms(spec, facts.model) + _attention(spec, facts, share) + _forward(spec, facts.model)
        total = 4 * (elements + _dora(spec, facts.model) + _narrow(spec, facts.model))
    else:
        total = _rounded(spec, facts, share)
    model = facts.model
    if model.model_type in _DROPPING:
        total += 3 * model.hidden_size
    times = _SCORING.get(model.model_type, 0)
    if times and (model.model_type != "gpt2" or device_of(spec) == "cpu"):
        total += (times * low_of(spec) + 1) * model.heads * share.longest
    return total + 4 * model.heads


def _norms(spec: FineTuneJobSpec, model: ModelShape) -> int:
    """Elements: inputs, normalised ones (root-mean-square norms are several operations) and what products take from them."""
    family, h = family_of(model.model_type), model.hidden_size
    count, kind = max(1, family.norms), kind_of(spec)
    several = not family.norm_bias and family.norms > 0
    elements = count * h
    if several and kind == "full":
        elements += count * h
    if kind != "virtual":
        elements += min(2, count) * h
    if family.qk_norm != "none":
        elements += (2 if kind == "full" else 1) * (model.heads + model.kv_heads) * model.head_dim
    return elements


def _attention(spec: FineTuneJobSpec, facts: PlanFacts, share: Share) -> int:
    """Elements: query, key, value and output, and the output once more for the product after it."""
    model = facts.model
    q, kv = model.heads * model.head_dim, model.kv_heads * model.head_dim
    if spec.method.type == "prefix":  # a mask each, heads repeated, and the cache that the prefix stands in
        return 4 * q + 2 * kv + share.longest
    return 2 * q + 2 * kv + (q if kind_of(spec) != "virtual" else 0)


def _forward(spec: FineTuneJobSpec, model: ModelShape) -> int:
    f, kind = width(model), kind_of(spec)
    adapted = not model.experts or kind == "full"
    taken = f if kind != "virtual" and adapted else 0
    if model.gated:
        return 3 * f + taken
    if model.model_type in _COMPOSED:
        return 4 * f + taken
    return (0 if model.model_type in _KEEPS_OUTPUT and taken else f) + taken


def _dora(spec: FineTuneJobSpec, model: ModelShape) -> int:
    """Elements: the output of each adapted layer and of its adapter, which the magnitudes' gradients need."""
    if spec.method.type != "dora":
        return 0
    q, kv = model.heads * model.head_dim, model.kv_heads * model.head_dim
    return 2 * (q + 2 * kv + 2 * model.hidden_size + (2 if model.gated else 1) * width(model))


def _narrow(spec: FineTuneJobSpec, model: ModelShape) -> int:
    """Elements that adapters keep of a token: their narrow middle, of seven layers or so."""
    if spec.method.type not in LOW_RANK:
        return 0
    return (7 if model.gated and not model.experts else 4) * (spec.method.lora or LoraSpec()).rank


def _rounded(spec: FineTuneJobSpec, facts: PlanFacts, share: Share) -> int:
    """Bytes under bf16: norms work in fp32; with autocast each product keeps its own rounded copy of its input."""
    model, kind = facts.model, kind_of(spec)
    h, q, f = model.hidden_size, model.heads * model.head_dim, width(model)
    count = max(1, family_of(model.model_type).norms)
    if kind == "full":
        whole = spec.compute.strategy in (None, "ddp")
        norms = count * (8 if whole else 6) * h + (10 if whole else 4) * h
        return norms + 2 * (_attention(spec, facts, share) - q + _forward(spec, model))
    norms = 4 * count * h
    copies = 2 * (5 * h + q + (0 if model.experts else f)) if kind == "adapters" else 0
    inside = _attention(spec, facts, share) - (q if kind == "adapters" else 0)
    inner = _forward(spec, model) - (f if kind == "adapters" and not model.experts else 0)
    return norms + copies + 2 * (inside + inner + _dora(spec, model)) + 4 * _narrow(spec, model)


def kind_of(spec: FineTuneJobSpec) -> Kind:
    if spec.method.type == "full":
        return "full"
    return "adapters" if spec.method.type in LOW_RANK else "virtual"


def _layers(spec: FineTuneJobSpec, model: ModelShape) -> int:
    """Through how many the backward goes: below frozen embeddings and layers nothing is kept."""
    freeze, depth = spec.method.freeze, model.layers + model.encoder_layers
    if freeze is not None and freeze.all_but_last is not None:
        return min(depth, freeze.all_but_last)
    return depth


def width(model: ModelShape) -> int:
    """Of all that a token goes through in a feed-forward."""
    if not model.experts:
        return model.intermediate_size
    return model.experts_per_token * model.expert_intermediate_size + model.shared_expert_intermediate_size


def low_of(spec: FineTuneJobSpec) -> int:
    """Bytes of an element in what the forward computes."""
    precision = spec.training.precision or ("bf16" if device_of(spec) == "cuda" else "fp32")
    return 2 if precision == "bf16" else 4


def _stream(spec: FineTuneJobSpec) -> int:
    """Bytes of an element between the layers: fp32 where weights are, under autocast too."""
    whole = spec.method.type == "full" and spec.compute.strategy in (None, "ddp")
    return 2 if low_of(spec) == 2 and not whole else 4
