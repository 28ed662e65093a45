"""What the loop asks of a strategy. Each strategy wraps the model in its own engine; no other module knows which one runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import nn

from finetune_trainer.tasks.base import Batch

Loss = Callable[[nn.Module, Batch], torch.Tensor]
Named = tuple[str, str, torch.Tensor]
"""(kind, parameter name, fp32 tensor on the CPU); kind is "weights" or one of `optimizer.MOMENTS`."""


class Engine(Protocol):
    """A model and its optimizer under one way of sharing the work among ranks."""

    module: nn.Module
    """The model itself, for evaluation: calling it communicates nothing."""

    name: str
    """Class of the engine that really runs, for the log and the check at start."""

    even: bool
    """True when every rank must take the same number of micro-batches in a step; else at least one each."""

    def accumulate(self, batches: Sequence[Callable[[], Batch]], loss: Loss, scale: float) -> torch.Tensor:
        """Forward and backward over this rank's micro-batches; gradients become the sum over all ranks of loss * scale.

        Returns the sum of this rank's losses, unscaled, on the device.
        """
        ...

    def step(self, learning_rate: float) -> torch.Tensor | float:
        """Clip, update, clear. Returns the L2 norm of the gradients before clipping; non-finite if they were."""
        ...

    def export(self) -> Iterator[Named]:
        """Trainable weights and optimizer states by name, whole, in fp32. Collective: every rank iterates to the end; values count on rank 0."""
        ...

    def restore(self, read: Callable[[str, str], torch.Tensor], steps: int) -> None:
        """Take weights and states from a checkpoint of whatever strategy. `read(kind, name)` gives a whole tensor; `steps` updates were made."""
        ...
