"""What validation has found: the best value so far, and for how long there was no better one. Pure bookkeeping."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from finetune_api.evaluation import LOWER_IS_BETTER, Metric


@dataclass(frozen=True, slots=True)
class Best:
    """`value` of the metric after `step` steps."""

    step: int
    value: float


class Improvement:
    """Follows one metric. A checkpoint is kept for each better value; patience counts only what is better by more than `min_delta`.

    So a run that creeps forward by less than `min_delta` a validation goes on as long as it gets that far in sum.
    """

    def __init__(self, metric: Metric, *, patience: int | None = None, min_delta: float = 0.0) -> None:
        self.metric = metric
        self.best: Best | None = None
        self.without = 0
        """Validations since the last improvement that counted."""
        self._reference: Best | None = None
        self._patience = patience
        self._min_delta = min_delta

    def better(self, value: float, than: float, *, by: float = 0.0) -> bool:
        """By more than `by`, in this metric's direction."""
        gain = than - value if self.metric in LOWER_IS_BETTER else value - than
        return gain > by

    def take(self, step: int, value: float) -> bool:
        """The value after `step`; whether it is the best so far. One that is no number is never better."""
        counts = math.isfinite(value) and (
            self._reference is None or self.better(value, self._reference.value, by=self._min_delta)
        )
        if counts:
            self._reference, self.without = Best(step, value), 0
        else:
            self.without += 1
        best = math.isfinite(value) and (self.best is None or self.better(value, self.best.value))
        if best:
            self.best = Best(step, value)
        return best

    @property
    def exhausted(self) -> bool:
        """Whether patience is at an end."""
        return self._patience is not None and self.without >= self._patience

    @property
    def said(self) -> str:
        """Why training ends, when it is exhausted."""
        assert self._reference is not None or self.best is None
        since = f"since step {self._reference.step} ({self._reference.value:.4f})" if self._reference else "at all"
        return f"{self.metric} has not improved {since} in {self.without} validation{'s' * (self.without > 1)}"

    def state(self) -> dict[str, Any]:
        """For a checkpoint: what counts towards patience. The best value is the best checkpoint's own to tell."""
        reference = self._reference
        return {
            "metric": self.metric,
            "without": self.without,
            **({} if reference is None else {"reference": [reference.step, reference.value]}),
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave. What an older version saved, or was of another metric, is left aside."""
        if state.get("metric") == self.metric:
            self.without = int(state["without"])
            self._reference = Best(*state["reference"]) if "reference" in state else None
