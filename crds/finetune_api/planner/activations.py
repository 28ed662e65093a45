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
from finetune_api.planner.families import family_of, is_eager
from finetune_api.planner.share import Share, device_of
from finetune_api.spec import FineTuneJobSpec

Kind = Literal["full", "adapters", "virtual"]

_COMPOSED = ("gpt2", "gpt_neo", "gptj", "phi", "gpt_bigcode", "codegen")
"""Types whose activation is written as several operations, each of which keeps something (gelu_new)."""
_KEEPS_OUTPUT = ("opt", "t5")
"""Types with ReLU, which keeps its output alone."""
_DROPPING = ("gpt2", "bart", "mbart", "opt", "bert", "roberta", "distilbert", "t5", "mt5", "umt5", "gpt_bigcode")
"""Types that are made with dropout on what layers add, which keeps a mask of a byte each."""
_SCORING = {"t5": 3, "mt5": 3, "umt5": 3, "gpt2": 3}
"""Types whose attention weights are kept, so many times: for position biases, or dropout on them, which no fused kernel for CPUs does."""
_SINKS = ("gpt_oss",)
_CAPPED = ("gemma2", "vaultgemma")
_CLAMPED = ("gpt_oss",)
"""Types whose experts' gates are several operations, each of which keeps something."""
_IN_PARTS = ("phi3", "phi", "glm", "glm4", "gpt_neox", "stablelm", "nemotron", "persimmon")
"""Types whose rotary embeddings turn a part of each head."""


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes: `saved` of the whole model at the end of the forward, `layer` those that come and go in the backward of one layer."""

    saved: int
    layer: int


def activations(spec: FineTuneJobSpec, facts: PlanFacts, share: Share) -> Activations:
    """Of one micro-batch."""
    model, low = facts.model, low_of(spec)
    each = layer_bytes(spec, facts, share) * share.tokens
    stream = stream_of(spec) * model.hidden_size * share.tokens
    layers = reached(spec, model)
    if model.encoder_layers:
        each = int(each * 1.25)  # the decoder has two attentions
    ends = 3 * stream
    moving = low * share.tokens * (2 * width(model) + 2 * model.hidden_size)
    if is_eager(model):  # gradients of attention's weights, when the feed-forward's part of the layer is gone
        weights = _moving_scores(spec, model) * model.heads * share.longest
        moving = max(moving, share.tokens * (weights - _feed_forward(spec, model)))
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
    total += scores(spec, model) * model.heads * share.longest
    return total + (0 if is_eager(model) else 4 * model.heads)


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
    """Bytes under bf16, where norms work in fp32. `mixed`: between the layers there is fp32, because autocast rounds weights that are held in it."""
    model, kind, mixed = facts.model, kind_of(spec), is_mixed(spec)
    family, h = family_of(model.model_type), model.hidden_size
    q, kv = model.heads * model.head_dim, model.kv_heads * model.head_dim
    full = kind == "full"
    norm = 4 * h  # its input in fp32
    if full and not family.norm_bias:  # and what the trained weight is multiplied with
        norm += 4 * h if mixed or family.norm_in_fp32 else 2 * h
    total = max(1, family.norms) * norm
    total += 2 * h * _readers(spec, model) if kind != "virtual" else 0
    if family.qk_norm != "none":
        total += (q + kv) * (4 if not full else 8 if family.norm_in_fp32 else 6)
    if is_eager(model):  # keys and values once for each head
        total += 8 * q
    else:
        total += 4 * q + 4 * kv + _copied(model)
    total += _feed_forward(spec, model)
    if spec.method.type == "dora":
        total += _decomposed(model)
    return total + 2 * _narrow(spec, model)


def _readers(spec: FineTuneJobSpec, model: ModelShape) -> int:
    """How many bf16 copies there are of what a layer's norms give: where it is fp32 already, one for each product that reads it."""
    family = family_of(model.model_type)
    attention = 1 if family.fused in ("qkv", "both") else 3
    forward = 1 if family.fused in ("ff", "both") or not model.gated else 2
    if is_mixed(spec):
        return attention + (1 if model.experts else forward)
    if spec.method.type == "dora":  # in fp32 for the adapter of each, and rounded for its product
        return attention + (0 if model.experts else forward)
    return min(2, max(1, family.norms)) - (1 if model.experts and kind_of(spec) != "full" else 0)


def _copied(model: ModelShape) -> int:
    """Bytes that fused attention keeps beside queries, keys, values and outputs.

    A value that is a part of a product with queries and keys keeps all of it. Queries that rotary embeddings put together of two
    parts lie head by head, so that the output is copied to lie token by token.
    """
    q, kv = model.heads * model.head_dim, model.kv_heads * model.head_dim
    whole = 2 * q + 2 * kv if family_of(model.model_type).fused in ("qkv", "both") else 0
    return whole + (2 * q if model.model_type in _IN_PARTS else 0)


def _feed_forward(spec: FineTuneJobSpec, model: ModelShape) -> int:
    """Bytes of a layer's feed-forward."""
    low, full = low_of(spec), kind_of(spec) == "full"
    if model.experts and low == 2:
        return _experts(model, full=full, mixed=is_mixed(spec))
    return low * _forward(spec, model)


def _experts(model: ModelShape, *, full: bool, mixed: bool) -> int:
    """Bytes of the products over groups of tokens, which autocast leaves in the precision of their weights, and of the router.

    Of each expert of a token: gate and up in one, the gate's activation, and what goes back; where experts are trained also
    what goes in, and what the second product reads.
    """
    size = 4 if mixed else 2
    h, f = model.hidden_size, model.expert_intermediate_size
    each = (2 * h + 4 * f) if full else (h + 3 * f)
    if model.model_type in _CLAMPED:
        each += 3 * f
    shared = 8 * model.shared_expert_intermediate_size
    return size * model.experts_per_token * each + shared + 4 * model.experts


def _decomposed(model: ModelShape) -> int:
    """Bytes of DoRA: outputs of each adapted layer and of its adapter, and the rounded inputs of the last products."""
    q, kv, f = model.heads * model.head_dim, model.kv_heads * model.head_dim, 0 if model.experts else width(model)
    gates = 2 if model.gated else 1
    return 4 * (q + 2 * kv + model.hidden_size + gates * f + (model.hidden_size if f else 0)) + 2 * q


def scores(spec: FineTuneJobSpec, model: ModelShape) -> int:
    """Bytes kept of the weight that a token gives to another in one head, where no fused kernel computes attention."""
    low, times = low_of(spec), _SCORING.get(model.model_type, 0)
    if times and (model.model_type != "gpt2" or device_of(spec) == "cpu"):
        return times * low + 1
    if not is_eager(model):
        return 0
    if model.model_type in _SINKS:  # the softmax alone, in the precision of its input
        return low
    return (4 if low == 4 else 6) + (low if model.model_type in _CAPPED else 0)  # the softmax in fp32, and rounded


def _moving_scores(spec: FineTuneJobSpec, model: ModelShape) -> int:
    """Bytes that come and go of each of attention's weights in the backward, beside what was kept: two gradients, in the
    precision of the softmax, where the copy that was rounded is gone."""
    if model.model_type in _SINKS:
        return 2 * low_of(spec)
    return 8 if low_of(spec) == 4 else 6


def is_mixed(spec: FineTuneJobSpec) -> bool:
    """Whether autocast rounds weights held in fp32. DeepSpeed and FSDP2 round them before the forward."""
    return low_of(spec) == 2 and spec.method.type == "full" and spec.compute.strategy in (None, "ddp")


def kind_of(spec: FineTuneJobSpec) -> Kind:
    if spec.method.type == "full":
        return "full"
    return "adapters" if spec.method.type in LOW_RANK else "virtual"


def reached(spec: FineTuneJobSpec, model: ModelShape) -> int:
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


def stream_of(spec: FineTuneJobSpec) -> int:
    """Bytes of an element between the layers: fp32 where weights are, under autocast too."""
    return 2 if low_of(spec) == 2 and not is_mixed(spec) else 4
