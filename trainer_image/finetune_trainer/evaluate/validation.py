"""The validation split while training: its loss, and the metric by which the best checkpoint is chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from finetune_api.evaluation import Metric
from torch import nn

from finetune_trainer.data.shards import Shards
from finetune_trainer.evaluate.classes import classify
from finetune_trainer.evaluate.generate import answers, until
from finetune_trainer.evaluate.measure import answerable, greedy, spread
from finetune_trainer.evaluate.nll import perplexity, split_loss
from finetune_trainer.evaluate.scores import SCORES, scores
from finetune_trainer.tasks.base import Task
from finetune_trainer.tasks.classification import ClassificationTask
from finetune_trainer.train.gang import Gang

GENERATED_ROWS = 128
"""Most rows whose answers are generated for exact match, evenly spread."""


@dataclass(frozen=True, slots=True)
class Validated:
    """`loss` in nats, the mean over `tokens` trained tokens (rows of a classifier); `value` of the metric asked for. They may be no finite number."""

    loss: float
    value: float
    tokens: int


def validate(
    gang: Gang,
    module: nn.Module,
    task: Task,
    shards: Shards,
    metric: Metric | None,
    *,
    on_batch: Callable[[int], None],
    on_token: Callable[[], None],
    module_communicates: bool = False,
    tokenizer: Any | None = None,
) -> Validated:
    """The loss always, and `metric` (None: the loss) beside it. Collective; the same on every rank.

    exact-match compares texts where a tokenizer is given, else token ids. `on_batch(rows)` is called after each batch,
    `on_token` for each step of a generation. `module_communicates`: see `train.engines.engine.Engine`.
    Raises Stopped, on all ranks alike, when one of them was asked to stop.
    """
    split = shards.validation
    if isinstance(task, ClassificationTask):
        classified = classify(gang, module, task, split, on_batch=on_batch)
        value = classified.loss
        if metric in SCORES:
            rows = range(split.rows)
            value = scores([split.labels(row) for row in rows], [classified.labels[row] for row in rows])[metric]
        return Validated(classified.loss, value, split.rows)
    measured = split_loss(gang, module, task, split, on_batch=on_batch)
    value = measured.loss
    if metric == "perplexity":
        value = perplexity(measured.loss)
    elif metric == "exact-match":
        asked = spread(answerable(split), GENERATED_ROWS)
        how = greedy(shards, shards.resolved["max_new_tokens"], module_communicates=module_communicates)
        given = answers(gang, module, split, asked, how, on_token=on_token, on_batch=on_batch)
        wanted = {row: until(split.tokens(row)[split.prompt_length(row) :].tolist(), how.stop) for row in asked}
        said = _text(tokenizer) if tokenizer is not None else list
        value = sum(said(given[row]) == said(wanted[row]) for row in asked) / max(1, len(asked))
    return Validated(measured.loss, value, measured.tokens)


def _text(tokenizer: Any) -> Callable[[list[int]], str]:
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=True).strip()
