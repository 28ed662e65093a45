"""What a model is tuned for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune_api.method import Task


@dataclass(frozen=True, slots=True)
class Purpose:
    """`labels` are a classifier's, in the order of their ids; `pad` is the id with which its rows are filled up."""

    task: Task = "causal-lm"
    labels: tuple[str, ...] | None = None
    multi_label: bool = False
    pad: int | None = None

    @classmethod
    def of(cls, resolved: Mapping[str, Any], *, pad: int | None) -> Purpose:
        """From `resolved` of the shards' manifest."""
        labels = resolved.get("labels")
        return cls(
            task=resolved.get("task") or "causal-lm",
            labels=tuple(labels) if labels is not None else None,
            multi_label=bool(resolved.get("multi_label")),
            pad=pad,
        )

    @property
    def classifies(self) -> bool:
        return self.task == "sequence-classification"
