"""What the loop asks of a strategy. Each strategy wraps the model in its own engine; no other module knows which one runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from finetune_api.compute import OffloadSpec
from torch import nn

from finetune_trainer.tasks.base import Batch

Loss = Callable[[nn.Module, Batch], torch.Tensor]
Named = tuple[str, str, torch.Tensor]
"""(kind, parameter name, tensor in floating point on any device); kind is "weights", "ema", or a state of the optimizer's recipe."""

WEIGHTS = "weights"


@dataclass(frozen=True, slots=True)
class Setting:
    """What every engine is told."""

    rank: int
    world_size: int
    device: torch.device
    bf16: bool
    max_grad_norm: float
    ema: float | None = None
    offload: OffloadSpec | None = None


class Engine(Protocol):
    """A model and its optimizer under one way of sharing the work among ranks."""

    module: nn.Module
    """The model itself, for evaluation. See `module_communicates`."""

    name: str
    """Class of the engine that really runs, for the log and the check at start."""

    optimizer: str
    """Name of the optimizer."""

    even: bool
    """True when every rank must take the same number of micro-batches in a step; else at least one each."""

    module_communicates: bool
    """True when calling `module` gathers weights: every rank must then call it equally often. It turns False inside `unsharded()`."""

    state_bytes: int
    """Size of all that `export` gives."""

    def accumulate(self, batches: Sequence[Callable[[], Batch]], loss: Loss, scale: float) -> torch.Tensor:
        """Forward and backward over this rank's micro-batches; gradients become the sum over all ranks of loss * scale.

        Returns the sum of this rank's losses, unscaled, on the device.
        """
        ...

    def step(self, learning_rate: float) -> torch.Tensor | float:
        """Clip, update, clear. Returns the L2 norm of the gradients before clipping; non-finite if they were."""
        ...

    def export(self) -> Iterator[Named]:
        """Trainable weights, their moving average if there is one, and optimizer states, by name and whole, a tensor at a time.

        Collective: every rank iterates to the end. Values count on rank 0, and only until the next step.
        """
        ...

    def restore(self, read: Callable[[str, str], torch.Tensor], steps: int) -> None:
        """Take weights and states from a checkpoint of whatever strategy. `read(kind, name)` gives a whole tensor; `steps` updates were made."""
        ...

    def load(self, read: Callable[[str], torch.Tensor]) -> None:
        """Collective: take trainable weights, whole, to be measured; training is over. `read(name)` is asked for one at a time."""
        ...

    def averaged(self) -> AbstractContextManager[None]:
        """Collective: inside, the weights are their moving average, if the run keeps one."""
        ...

    def unsharded(self) -> AbstractContextManager[None]:
        """Collective: inside, `module` holds whole weights and communicates nothing, if they fit into every rank's memory (see `module_communicates`)."""
        ...

    def whole(self, *, frozen: bool) -> nn.Module:
        """Collective, and the end of this engine: on rank 0 the module with plain parameters, ready for new `.data` and to be saved.

        Where weights were sharded, trainable ones are left empty, for a checkpoint has them; frozen ones are gathered only if asked for.
        """
        ...
