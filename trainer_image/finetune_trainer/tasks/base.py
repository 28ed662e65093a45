"""What the loop and the evaluation ask of a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from finetune_trainer.data.shards import Split

IGNORED = -100
"""Label of what the loss does not count."""

Rows = Sequence[int] | np.ndarray


@dataclass(frozen=True, slots=True)
class Batch:
    """`inputs` are keyword arguments of the model's forward: tensors, and numbers that the host must know; `labels` are the task's own affair.

    `extra` holds whatever else the task's loss needs on the device.
    """

    inputs: dict[str, Any]
    labels: torch.Tensor
    extra: dict[str, torch.Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> Batch:
        """Itself on a CPU; else a copy, by pinned memory and without waiting."""
        if device.type == "cpu":
            return self

        def move(value: Any) -> Any:
            return value.pin_memory().to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value

        return Batch(
            {name: move(tensor) for name, tensor in self.inputs.items()},
            move(self.labels),
            {name: move(tensor) for name, tensor in self.extra.items()},
        )


class Task(Protocol):
    """One way of learning from rows."""

    def collate(self, split: Split, rows: Rows, *, counted: bool = True) -> Batch:
        """The batch of some rows, on the CPU. With `counted` False nothing in it counts, but its forward can run all the same."""
        ...

    def loss(self, model: nn.Module, batch: Batch, *, label_smoothing: float = 0.0) -> torch.Tensor:
        """Sum in nats over what counts in the batch, a float32 scalar. Dividing it by `weight` is the caller's."""
        ...

    def weight(self, split: Split, rows: Rows) -> int:
        """How much counts in these rows: trained tokens, or rows of a classifier."""
        ...
