"""A whole split in batches, a batch a rank and round: the same batches at every world size, and as many forwards on every rank."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from finetune_api.compute import MICRO_BATCH_TOKENS
from torch import nn

from finetune_trainer.data.shards import Split
from finetune_trainer.errors import Stopped
from finetune_trainer.tasks.base import Batch, Task
from finetune_trainer.train import micro_batches
from finetune_trainer.train.gang import Gang


@dataclass(frozen=True, slots=True)
class Turn:
    """`batch` of `rows`, on the device. Where a rank has none left it is one row with `counts` False: where weights are
    sharded, its peers' forwards wait for its own."""

    rows: np.ndarray
    batch: Batch
    counts: bool


def turns(gang: Gang, task: Task, split: Split, *, doing: str, on_batch: Callable[[int], None]) -> Iterator[Turn]:
    """What this rank forwards, all of it. Collective. After each turn `on_batch(rows)` is told the rows that all ranks have done.

    Raises Stopped, on all ranks alike, when one of them was asked to stop; `doing` ends its sentence.
    """
    lengths = split.lengths()
    order = np.lexsort((np.arange(split.rows), -lengths))
    packed = getattr(task, "packs", False)
    # Forwards alone hold little: what the training may have at once is no limit here.
    groups = micro_batches.cut(order, lengths, MICRO_BATCH_TOKENS[gang.device.type], packed=packed)
    done = 0
    for start in range(0, len(groups), gang.world_size):
        if gang.should_stop():
            raise Stopped(f"asked to stop while {doing}", code="Stopped")
        mine = start + gang.rank
        counts = mine < len(groups)
        rows = groups[mine] if counts else order[-1:]
        yield Turn(rows, task.collate(split, rows, counted=counts).to(gang.device), counts)
        done += sum(len(part) for part in groups[start : start + gang.world_size])
        on_batch(done)


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode, and afterwards as it was."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
