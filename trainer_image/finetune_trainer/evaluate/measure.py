"""One model on the test split: its metrics, and its answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from finetune_api.evaluation import EvaluationSpec, Metric
from torch import nn

from finetune_trainer.data.shards import Shards
from finetune_trainer.evaluate.classes import classify
from finetune_trainer.evaluate.generate import Greedy, answers
from finetune_trainer.evaluate.nll import split_loss
from finetune_trainer.evaluate.scores import SCORES
from finetune_trainer.tasks.base import Task
from finetune_trainer.tasks.classification import ClassificationTask
from finetune_trainer.train.gang import Gang

ROW_CAP = 512
"""Most rows whose answers are generated for exact match; the loss is measured on all."""

SAMPLES = 8


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to measure. `rows` are those whose answers are generated: all that have one, up to the cap, evenly spread. Of a classifier there are none."""

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

    @property
    def classes(self) -> bool:
        """Whether rows are classified."""
        return bool(set(SCORES) & set(self.metrics))

    @property
    def whole_split(self) -> bool:
        """Whether every row is forwarded, for its loss or its label."""
        return self.loss or self.classes


@dataclass(slots=True)
class Measured:
    """Of one model. `loss` in nats a token (a row of a classifier); `answers` by row of the test split, as token ids; `labels` by row, as numbers."""

    loss: float | None = None
    answers: dict[int, list[int]] = field(default_factory=dict)
    labels: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Measured:
        return cls(
            value["loss"],
            {int(row): ids for row, ids in value["answers"].items()},
            {int(row): tuple(labels) for row, labels in value.get("labels", {}).items()},
        )


def wanted(shards: Shards, spec: EvaluationSpec) -> Wanted:
    """What the spec asks for, of what the test split can give."""
    test = shards.test
    if shards.labels:
        default: tuple[Metric, ...] = ("loss", "accuracy", "f1")
        metrics = tuple(spec.metrics or default) if test.rows else ()
        return Wanted(metrics, (), tuple(spread(list(range(test.rows)), SAMPLES)) if metrics else (), 0)
    with_answer = answerable(shards.test)
    default = ("loss", "perplexity", "exact-match") if with_answer else ("loss", "perplexity")
    metrics = tuple(spec.metrics or default) if test.rows else ()
    if not with_answer:
        metrics = tuple(metric for metric in metrics if metric != "exact-match")
    rows = spread(with_answer, ROW_CAP)
    samples = spread(rows, SAMPLES)
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
    module_communicates: bool = False,
) -> Measured:
    """Collective. `on_rows(n)` is told of n more rows measured, `on_token` of each step of a generation. Raises Stopped when a rank was asked to stop.

    `module_communicates`: see `train.engines.engine.Engine`.
    """
    result = Measured()
    seen = _Increments(on_rows)
    if isinstance(task, ClassificationTask):
        if what.whole_split:
            classified = classify(gang, module, task, shards.test, on_batch=seen)
            result.loss, result.labels = _finite(classified.loss), classified.labels
        return result
    if what.loss:
        result.loss = _finite(split_loss(gang, module, task, shards.test, on_batch=seen).loss)
    if what.rows:
        seen.reset()
        how = greedy(shards, what.max_new_tokens, module_communicates=module_communicates)
        result.answers = answers(gang, module, shards.test, what.rows, how, on_token=on_token, on_batch=seen)
    return result


def greedy(shards: Shards, max_new_tokens: int, *, module_communicates: bool) -> Greedy:
    """How answers to these shards' prompts are written."""
    tokenizer = shards.tokenizer
    return Greedy(max_new_tokens, tokenizer["pad"], tuple(tokenizer["stop"]), module_communicates)


def answerable(split: Any) -> list[int]:
    """Rows that have a prompt and an answer."""
    lengths = split.lengths()
    return [row for row in range(split.rows) if 0 < split.prompt_length(row) < lengths[row]]


def spread(rows: list[int], count: int) -> list[int]:
    """At most `count` of them, evenly spread, in order."""
    if len(rows) <= count:
        return rows
    return [rows[i] for i in np.linspace(0, len(rows) - 1, count).round().astype(int)]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


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
