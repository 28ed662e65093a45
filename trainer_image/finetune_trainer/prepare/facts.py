"""The numbers from which plans are made: of the model's files and of the rows that were written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetune_api.planner.facts import LENGTH_BINS, DataFacts, ModelShape
from finetune_api.planner.families import is_eager
from finetune_api.planner.shape import shape_of

from finetune_trainer.data.shards import SplitCounts
from finetune_trainer.errors import BadInput
from finetune_trainer.prepare.model import ModelFacts


def of_model(model: ModelFacts, uri: str) -> ModelShape:
    """Raises BadInput (InvalidModel) for a configuration without the sizes that a transformer has."""
    try:
        shape = shape_of(_plain(model.config.to_dict()), parameters=model.parameters, weight_bytes=model.weight_bytes)
    except ValueError as error:
        raise BadInput(f"spec.model.uri: {uri}: config.json: {error}", code="InvalidModel") from error
    if model.fused_attention not in (None, not is_eager(shape)):
        shape = shape.model_copy(update={"fused_attention": model.fused_attention})
    # Of a mixture of experts adapters go to attention alone, which the formula knows and names in files do not tell.
    return shape if shape.experts else shape.model_copy(update={"linear_in_out": model.linear_in_out})


def of_data(counts: Mapping[str, SplitCounts], lengths: Mapping[int, int], *, size: int, labels: int) -> DataFacts:
    """`lengths`: rows by the longest length of their bin; `size`: bytes of the data files."""
    train = counts["train"]
    return DataFacts(
        rows=train.rows,
        validation_rows=counts["validation"].rows,
        test_rows=counts["test"].rows,
        tokens=train.tokens,
        trained_tokens=train.trained_tokens,
        longest=max(count.longest for count in counts.values()),
        lengths=coarse(sorted(lengths.items())),
        bytes=size,
        labels=labels,
    )


def coarse(bins: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """At most LENGTH_BINS bins, of about equally many rows each."""
    total = sum(rows for _, rows in bins)
    merged: list[tuple[int, int]] = []
    kept = seen = 0
    for number, (longest, rows) in enumerate(bins):
        kept, seen = kept + rows, seen + rows
        if number == len(bins) - 1 or seen * (LENGTH_BINS - 1) >= total * (len(merged) + 1):
            merged.append((longest, kept))
            kept = 0
    return merged


def _plain(value: Any) -> Any:
    """Without what is no JSON: transformers keeps types and enums in configurations."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
