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
WEIGHTS = "weights"


@dataclass(frozen=True, slots=True)
class Fragment:
    """A range of a named tensor: `values` are the elements from `start` of the flattened tensor of that shape.

    `kind` is "weights", "ema", or a state of the optimizer's recipe; values are flat, in floating point, on any device.
    """

    kind: str
    name: str
    shape: tuple[int, ...]
    start: int
    values: torch.Tensor


class ReadState(Protocol):
    def __call__(self, kind: str, name: str, start: int, length: int) -> torch.Tensor:
        """A range of a flattened tensor, in fp32 on the CPU."""
        ...


class ReadWeights(Protocol):
    def __call__(self, name: str, start: int, length: int) -> torch.Tensor:
        """A range of a flattened weight, in fp32 on the CPU."""
        ...


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
    """Size of all that `export` gives on all ranks, in fp32."""

    def accumulate(self, batches: Sequence[Callable[[], Batch]], loss: Loss, scale: float) -> torch.Tensor:
        """Forward and backward over this rank's micro-batches; gradients become the sum over all ranks of loss * scale.

        Returns the sum of this rank's losses, unscaled, on the device.
        """
        ...

    def step(self, learning_rate: float) -> torch.Tensor | float:
        """Clip, update, clear. Returns the L2 norm of the gradients before clipping; non-finite if they were."""
        ...

    def export(self) -> Iterator[Fragment]:
        """What this rank owns of trainable weights, their moving average if there is one, and optimizer states.

        Not collective. Over all ranks every element is there once. Values count until the next step.
        """
        ...

    def restore(self, read: ReadState, steps: int) -> None:
        """Take weights and states from a checkpoint of whatever strategy, after which `steps` updates were made; only what this rank needs is read.

        Not collective; `refresh` must follow when all ranks are done.
        """
        ...

    def load(self, read: ReadWeights) -> None:
        """As `restore`, trainable weights alone, to be measured; training is over."""
        ...

    def refresh(self) -> None:
        """Collective: the weights that the forward computes with become those that were read."""
        ...

    def averaged(self) -> AbstractContextManager[None]:
        """Collective: inside, the weights are their moving average, if the run keeps one."""
        ...

    def unsharded(self) -> AbstractContextManager[None]:
        """Collective: inside, `module` holds whole weights and communicates nothing, if they fit into every rank's memory (see `module_communicates`)."""
        ...

    def whole(self) -> nn.Module:
        """The end of this engine: the module with plain parameters, to be described and saved. Where weights were sharded they are left empty."""
        ...
