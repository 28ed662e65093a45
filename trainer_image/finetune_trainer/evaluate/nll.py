"""Loss of a model on a whole split, weighted by what counts for its task, over all ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from finetune_trainer.data.shards import Split
from finetune_trainer.evaluate.rounds import evaluating, turns
from finetune_trainer.tasks.base import Task
from finetune_trainer.train.gang import Gang

_LARGEST_LOSS = 700.0  # exp of more is no float


@dataclass(frozen=True, slots=True)
class SplitLoss:
    """`loss` in nats, the mean over `tokens` trained tokens (rows of a classifier)."""

    loss: float
    tokens: int


def perplexity(loss: float) -> float:
    """Of a loss in nats a token; finite for any that is."""
    return math.exp(min(loss, _LARGEST_LOSS))


def split_loss(
    gang: Gang, module: nn.Module, task: Task, split: Split, *, on_batch: Callable[[int], None]
) -> SplitLoss:
    """Mean loss over all rows of `split`. Collective. `on_batch(rows)` is called after each batch with the rows measured so far.

    Raises Stopped, on all ranks alike, when one of them was asked to stop.
    """
    total = torch.zeros((), dtype=torch.float64, device=gang.device)
    weight = 0
    with evaluating(module):
        for turn in turns(gang, task, split, doing="measuring the loss", on_batch=on_batch):
            with torch.no_grad():
                loss = task.loss(module, turn.batch)
            if turn.counts:
                total += loss.double()
                weight += task.weight(split, turn.rows)
    total_nll, all_weight = gang.sums([float(total), float(weight)])
    return SplitLoss(total_nll / max(1.0, all_weight), int(all_weight))
