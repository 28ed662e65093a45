"""What a plan is made from beside the spec: the model's shape and the data's numbers.

Both come from prepare, in its last word; `ftj plan` reads them from a config.json and the files. Small enough for a
termination message, whole enough that whoever has them and the spec computes the very same plan.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from finetune_api.base import ApiModel

LENGTH_BINS = 24
_DEEPEST = 10_000
"""A pod tells these numbers, and layers are gone through one by one."""


class ModelShape(ApiModel):
    """Sizes of a transformer. Numbers that a model has not are 0."""

    model_type: str
    hidden_size: int = Field(ge=1)
    layers: int = Field(ge=1, le=_DEEPEST, description="Decoder layers (of an encoder alone: its layers).")
    encoder_layers: int = Field(default=0, le=_DEEPEST, description="Of an encoder-decoder model.")
    heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    head_dim: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    gated: bool = Field(default=True, description="Whether the feed-forward has three matrices, not two.")
    vocab_size: int = Field(ge=1)
    tied: bool = Field(default=False, description="Whether the output head is the embedding table.")
    experts: int = Field(default=0, description="Of a layer; 0 means dense.")
    experts_per_token: int = 0
    expert_intermediate_size: int = 0
    shared_expert_intermediate_size: int = 0
    dense_layers: int = Field(default=0, description="Layers of a mixture of experts that have none.")
    sliding_window: int = Field(default=0, description="Tokens; 0 means that all layers see everything.")
    windowed_layers: int = 0
    context_length: int = Field(default=0, description="0 means not bounded.")
    parameters: int = Field(ge=1, description="All weights, counted in the files where there are files.")
    weight_bytes: int = Field(default=0, description="Of the files; 0 means not known.")
    fused_attention: bool | None = Field(
        default=None,
        description="Whether attention has a fused kernel, where the model's class differs from what its type is known for.",
    )
    linear_in_out: int = Field(
        default=0, description="Sum of inputs and outputs over the linear layers that adapters go to; 0: by formula."
    )


class DataFacts(ApiModel):
    """Numbers of the rows to train on, after cutting and dropping."""

    rows: int = Field(ge=1)
    validation_rows: int = 0
    test_rows: int = 0
    tokens: int = Field(ge=1, description="Of one pass over the rows.")
    trained_tokens: int = Field(default=0, description="Those of them that the loss counts.")
    longest: int = Field(ge=1)
    lengths: list[tuple[int, int]] = Field(
        default_factory=list, max_length=LENGTH_BINS, description="(longest of the bin in tokens, rows), ascending."
    )
    bytes: int = Field(default=0, description="Of the data files.")
    labels: int = Field(default=0, description="Of a classifier.")


class Measured(ApiModel):
    """What an earlier training of the same kind on the same workspace reached."""

    tokens_per_second: Annotated[float, Field(gt=0)]
    startup_seconds: float = 0
    evaluation_seconds: float = 0
    runs: int = 1


class PlanFacts(ApiModel):
    """Everything that `planner` reads beside a spec."""

    model_config = ApiModel.model_config | {"extra": "ignore"}

    model: ModelShape
    data: DataFacts
    task: str = "causal-lm"
    measured: Measured | None = None
