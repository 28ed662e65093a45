"""Floating-point operations of a training: two for each weight and token in the forward, and attention by the rows' lengths.

As reference counts do: causal attention at half, the output head where something is trained, recomputation apart. LoRA
needs gradients of activations but not of frozen weights, so 4 operations for each weight where full fine-tuning has 6
(NVIDIA NeMo's convention, and https://thinkingmachines.ai/blog/lora/).
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.planner import parameters
from finetune_api.planner.facts import DataFacts, ModelShape
from finetune_api.spec import FineTuneJobSpec


@dataclass(frozen=True, slots=True)
class Flops:
    """`model` are those of the method, `hardware` with what is computed twice. Of one pass over the rows."""

    model: float
    hardware: float


def of_epoch(spec: FineTuneJobSpec, model: ModelShape, data: DataFacts) -> Flops:
    """Of one pass over the training rows, over all processes."""
    matrices, head, scores = forward(model, data)
    once = matrices + head + scores
    full = spec.method.type == "full"
    share = parameters.count(spec, model).trainable / model.parameters if full else 0.0
    # The backward of a product has two: one for its input, one for its weight, if that is trained.
    back = matrices * (1 + share) + head * (1 + share) + 2 * scores
    again = {"full": once, "selective": matrices, "none": 0.0}[spec.training.activation_checkpointing or "none"]
    return Flops(once + back, once + back + again)


def forward(model: ModelShape, data: DataFacts) -> tuple[float, float, float]:
    """Of one pass: of the layers' weights, of the output head, of attention's scores."""
    trained = data.trained_tokens or data.tokens
    head = 2.0 * parameters.table(model) * trained if parameters.generates(model) else 0.0
    return 2.0 * active(model) * data.tokens, head, _scores(model, data)


def active(model: ModelShape) -> int:
    """Weights of the layers that each token is multiplied with."""
    layers = max(0, model.parameters - parameters.outside(model))
    if not model.experts:
        return layers
    one = (3 if model.gated else 2) * model.hidden_size * model.expert_intermediate_size
    idle = (model.layers - model.dense_layers) * (model.experts - model.experts_per_token) * one
    return max(0, layers - idle)


def _scores(model: ModelShape, data: DataFacts) -> float:
    """Two products of length * length / 2 * width for each row and layer, of which windowed layers see less."""
    width = model.heads * model.head_dim
    return (
        4.0
        * width
        * sum(
            rows * (whole * _pairs(length, 0) + model.windowed_layers * _pairs(length, model.sliding_window))
            for length, rows in _bins(data)
            for whole in (model.layers - model.windowed_layers + model.encoder_layers,)
        )
    )


def _pairs(length: float, window: int) -> float:
    """Pairs of positions that see each other in a row."""
    if not window or length <= window:
        return length * length / 2
    return length * window - window * window / 2


def _bins(data: DataFacts) -> list[tuple[float, int]]:
    """(length, rows), the lengths taken down so that they sum to the tokens that there are."""
    mean = data.tokens / data.rows
    if not data.lengths:
        return [(mean, data.rows)]
    rows = sum(count for _, count in data.lengths)
    total = sum(longest * count for longest, count in data.lengths)
    factor = mean * rows / total
    return [(longest * factor, round(count * data.rows / rows) or 1) for longest, count in data.lengths]
