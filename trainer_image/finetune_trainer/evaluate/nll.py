"""Loss of a model on a whole split, weighted by tokens, over all ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from finetune_trainer.data.shards import Split
from finetune_trainer.errors import Stopped
from finetune_trainer.tasks.base import Task
from finetune_trainer.train import micro_batches
from finetune_trainer.train.gang import Gang


@dataclass(frozen=True, slots=True)
class SplitLoss:
    """`loss` in nats, the mean over `tokens` trained tokens."""

    loss: float
    tokens: int


def split_loss(
    gang: Gang, module: nn.Module, task: Task, split: Split, *, on_batch: Callable[[int], None]
) -> SplitLoss:
    """Mean loss over all rows of `split`. Collective. `on_batch(rows)` is called after each batch with the rows measured so far.

    Raises Stopped, on all ranks alike, when one of them was asked to stop.
    """
    lengths = split.lengths()
    order = np.lexsort((np.arange(split.rows), -lengths))
    groups = micro_batches.group(order, lengths, micro_batches.TOKEN_BUDGET[gang.device.type])
    total = torch.zeros((), dtype=torch.float64, device=gang.device)
    tokens = measured = 0
    training = module.training
    module.eval()
    try:
        for start in range(0, len(groups), gang.world_size):
            if gang.should_stop():
                raise Stopped("asked to stop while measuring the loss", code="Stopped")
            mine = start + gang.rank
            if mine < len(groups):
                with torch.no_grad():
                    total += task.loss(module, task.collate(split, groups[mine]).to(gang.device)).double()
                tokens += task.weight(split, groups[mine])
            measured += sum(len(part) for part in groups[start : start + gang.world_size])
            on_batch(measured)
    finally:
        module.train(training)
    total_nll, all_tokens = gang.sums([float(total), float(tokens)])
    return SplitLoss(total_nll / max(1.0, all_tokens), int(all_tokens))
