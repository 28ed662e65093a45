"""One model on the test split: its metrics, and its answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from finetune_api.evaluation import EvaluationSpec
from torch import nn

from finetune_trainer.data.shards import Shards
from finetune_trainer.evaluate.generate import answers
from finetune_trainer.evaluate.nll import split_loss
from finetune_trainer.tasks.base import Task
from finetune_trainer.train.gang import Gang

ROW_CAP = 512
"""Most rows whose answers are generated for exact match; the loss is measured on all."""

SAMPLES = 8


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to measure. `rows` are those whose answers are generated: all that have one, up to the cap, evenly spread."""

    metrics: tuple[str, ...]
    rows: tuple[int, ...]
    samples: tuple[int, ...]
    max_new_tokens: int

    @property
    def loss(self) -> bool:
        return bool({"loss", "perplexity"} & set(self.metrics))

    @property
    def exact_match(self) -> bool:
        return "exact-match" in self.metrics


@dataclass(slots=True)
class Measured:
    """Of one model. `loss` in nats a token; `answers` by row of the test split, as token ids."""

    loss: float | None = None
    answers: dict[int, list[int]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Measured:
        return cls(value["loss"], {int(row): ids for row, ids in value["answers"].items()})


def wanted(shards: Shards, spec: EvaluationSpec) -> Wanted:
    """What the spec asks for, of what the test split can give."""
    test = shards.test
    with_answer = [row for row in range(test.rows) if 0 < test.prompt_length(row) < test.lengths()[row]]
    default = ("loss", "perplexity") + (("exact-match",) if with_answer else ())
    metrics = tuple(spec.metrics or default) if test.rows else ()
    if not with_answer:
        metrics = tuple(metric for metric in metrics if metric != "exact-match")
    rows = _spread(with_answer, ROW_CAP)
    samples = _spread(rows, SAMPLES)
    if "exact-match" not in metrics:
        rows = samples
    return Wanted(metrics, tuple(rows), tuple(samples), shards.resolved["max_new_tokens"])


def measure(
    gang: Gang,
    module: nn.Module,
    shards: Shards,
    task: Task,
    what: Wanted,
    *,
    on_rows: Callable[[int], None],
    on_token: Callable[[], None],
) -> Measured:
    """Collective. `on_rows(n)` is told of n more rows measured, `on_token` of each step of a generation. Raises Stopped when a rank was asked to stop."""
    result = Measured()
    pad = shards.tokenizer["pad"]
    seen = _Increments(on_rows)
    if what.loss:
        loss = split_loss(gang, module, task, shards.test, on_batch=seen).loss
        result.loss = loss if math.isfinite(loss) else None
    if what.rows:
        seen.reset()
        result.answers = answers(
            gang,
            module,
            shards.test,
            what.rows,
            max_new_tokens=what.max_new_tokens,
            pad=pad,
            stop=shards.tokenizer["stop"],
            on_token=on_token,
            on_batch=seen,
        )
    return result


class _Increments:
    """From a count so far to what was added."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        self._tell = tell
        self._before = 0

    def __call__(self, so_far: int) -> None:
        self._tell(so_far - self._before)
        self._before = so_far

    def reset(self) -> None:
        self._before = 0


def _spread(rows: list[int], count: int) -> list[int]:
    """At most `count` of them, evenly spread, in order."""
    if len(rows) <= count:
        return rows
    return [rows[i] for i in np.linspace(0, len(rows) - 1, count).round().astype(int)]
