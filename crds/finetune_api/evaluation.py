"""`spec.evaluation`: what is measured on held-out rows."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import ApiModel

Metric = Literal["loss", "perplexity", "exact-match", "accuracy", "f1", "precision", "recall"]
LOWER_IS_BETTER: tuple[Metric, ...] = ("loss", "perplexity")


class GenerationSpec(ApiModel):
    """Greedy generation for exact match and for the report's samples."""

    max_new_tokens: Annotated[int, Field(ge=1, le=32768)] | None = Field(
        default=None, description="Absent: the longest answer in the test data and 8 more, at most 512."
    )


class EvaluationSpec(ApiModel):
    """What is measured on the test split."""

    metrics: list[Metric] | None = Field(
        default=None,
        min_length=1,
        max_length=8,
        description="f1, precision and recall are macro averages over the labels. Absent: loss, perplexity and exact-match (text data: loss and perplexity; classification: loss, accuracy and f1).",
    )
    baseline: bool = Field(default=True, description="Measure the base model too, on the same rows.")
    generation: GenerationSpec = Field(default_factory=GenerationSpec)
