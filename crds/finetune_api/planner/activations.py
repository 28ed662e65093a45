"""What autograd keeps between forward and backward, by token and layer, in transformers' eager code.

Counted tensor by tensor (docs/planning.md has the table). h: hidden size, q and kv: heads times head size, f: width of the
feed-forward. In fp32 a norm keeps its input and what it has normalised, a gated feed-forward gate, silu(gate), up and
their product. With autocast, frozen weights and adapters each adapted layer keeps a rounded copy of its own input.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.method import LOW_RANK, LoraSpec
from finetune_api.planner.facts import ModelShape, PlanFacts
from finetune_api.planner.share import Share, device_of
from finetune_api.spec import FineTuneJobSpec


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes: `saved` of the whole model at the end of the forward, `layer` those that come and go in the backward of one layer."""

    saved: int
    layer: int


def activations(spec: FineTuneJobSpec, facts: PlanFacts, share: Share) -> Activations:
    """Of one micro-batch."""
    model = facts.model
    each = layer_bytes(spec, model) * share.tokens + _scores(spec, facts, share)
    stream = _stream(spec) * model.hidden_size * share.tokens
    layers = model.layers + model.encoder_layers
    if model.encoder_layers:
        each = int(each * 1.25)  # the decoder has two attentions
    ends = 3 * stream
    kind = spec.training.activation_checkpointing or "none"
    low = _low(spec)
    moving = low * share.tokens * (3 * _width(model) + 2 * model.hidden_size)
    if kind == "none":
        return Activations(layers * each + ends, moving)
    kept = stream
    if kind == "selective":
        kept += (low * model.heads * model.head_dim + 4 * model.heads) * share.tokens
    return Activations(layers * kept + ends, each + moving)


def layer_bytes(spec: FineTuneJobSpec, model: ModelShape) -> int:
    """Kept of one token in one layer."""
    h, q, kv, f = model.hidden_size, model.heads * model.head_dim, model.kv_heads * model.head_dim, _width(model)
    trains_all = spec.method.type == "full"
    bf16 = _low(spec) == 2
    inner = 4 * f if model.gated else 2 * f
    if not bf16:
        norms = (6 if trains_all else 4) * h
        attention = 3 * q + 2 * (q if device_of(spec) == "cpu" else kv)
        return 4 * (norms + attention + inner) + 4 * model.heads + 4 * _adapters(spec, model)
    if trains_all:
        sharded = spec.compute.strategy not in (None, "ddp")
        norms = (16 if sharded else 26) * h
        return norms + 2 * (2 * q + 2 * kv + inner) + 4 * model.heads
    copies = 2 * (5 * h + q + f) if spec.method.type in LOW_RANK else 0
    return (
        8 * h
        + copies
        + 2 * (2 * q + 2 * kv + (3 if model.gated else 2) * f)
        + 4 * model.heads
        + 4 * _adapters(spec, model)
    )


def _adapters(spec: FineTuneJobSpec, model: ModelShape) -> int:
    """Elements that adapters keep of a token: their narrow middle."""
    if spec.method.type not in LOW_RANK:
        return 0
    return 7 * (spec.method.lora or LoraSpec()).rank


def _scores(spec: FineTuneJobSpec, facts: PlanFacts, share: Share) -> int:
    """Attention's weights, where the library keeps them: models without a fused attention (T5's position biases)."""
    if facts.model.model_type not in ("t5", "mt5", "umt5"):
        return 0
    return 2 * _low(spec) * facts.model.heads * share.longest * share.tokens


def _width(model: ModelShape) -> int:
    """Of all that a token goes through in a feed-forward."""
    if not model.experts:
        return model.intermediate_size
    return model.experts_per_token * model.expert_intermediate_size + model.shared_expert_intermediate_size


def _low(spec: FineTuneJobSpec) -> int:
    precision = spec.training.precision or ("bf16" if device_of(spec) == "cuda" else "fp32")
    return 2 if precision == "bf16" else 4


def _stream(spec: FineTuneJobSpec) -> int:
    """Bytes of an element between the layers: fp32 where weights are, under autocast too."""
    bf16 = _low(spec) == 2
    whole = spec.method.type == "full" and spec.compute.strategy in (None, "ddp")
    return 2 if bf16 and not whole else 4
