"""The labels that a classifier gives to the rows of a split, with its loss on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from finetune_trainer.data.shards import Split
from finetune_trainer.evaluate.rounds import evaluating, turns
from finetune_trainer.tasks.classification import ClassificationTask
from finetune_trainer.train.gang import Gang


@dataclass(frozen=True, slots=True)
class Classified:
    """`loss` in nats, the mean over rows; `labels` of each row, by their numbers."""

    loss: float
    labels: dict[int, tuple[int, ...]]


def classify(
    gang: Gang, module: nn.Module, task: ClassificationTask, split: Split, *, on_batch: Callable[[int], None]
) -> Classified:
    """Of all rows of `split`, on every rank. Collective. `on_batch(rows)` is told the rows done so far.

    Raises Stopped, on all ranks alike, when one of them was asked to stop.
    """
    total = torch.zeros((), dtype=torch.float64, device=gang.device)
    mine: dict[int, tuple[int, ...]] = {}
    with evaluating(module):
        for turn in turns(gang, task, split, doing="classifying", on_batch=on_batch):
            with torch.no_grad():
                logits = task.logits(module, turn.batch)
            if turn.counts:
                total += task.loss_of(logits, turn.batch).double()
                mine |= dict(zip(turn.rows.tolist(), task.predicted(logits), strict=True))
    labels = {row: given for part in gang.gather(mine) for row, given in part.items()}
    [loss] = gang.sums([float(total)])
    return Classified(loss / max(1, split.rows), labels)
