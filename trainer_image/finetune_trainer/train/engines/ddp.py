"""Strategy ddp: every rank holds everything and gradients are averaged once a step. A single process is its simplest case."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from finetune_trainer.tasks.base import Batch
from finetune_trainer.train import ema
from finetune_trainer.train.engines.engine import WEIGHTS, Fragment, Loss, ReadState, ReadWeights, Setting
from finetune_trainer.train.engines.precision import computes_in_bf16
from finetune_trainer.train.optimizers.groups import set_learning_rate
from finetune_trainer.train.optimizers.guard import Guard
from finetune_trainer.train.optimizers.recipe import Group, Recipe, states_of


class DdpEngine:
    """See `engine.Engine`. Takes any optimizer."""

    even = False
    module_communicates = False

    def __init__(self, setting: Setting, model: nn.Module, recipe: Recipe, groups: list[Group]) -> None:
        self._rank, self._ranks = setting.rank, setting.world_size
        self._device = setting.device
        self._max_grad_norm = setting.max_grad_norm
        if any(p.device.type != setting.device.type for p in model.parameters()):  # quantised ones must not be moved
            model.to(setting.device)
        if setting.bf16:
            computes_in_bf16(model, setting.device)
        self.module = model
        self._model: nn.Module = model
        if self._ranks > 1:
            self._model = DistributedDataParallel(
                model,
                device_ids=[setting.device.index] if setting.device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                broadcast_buffers=False,
                init_sync=False,  # at start all ranks compare a digest of what they loaded
            )
        self.name = type(self._model).__name__ if self._ranks > 1 else "single process"
        self._recipe = recipe
        self.optimizer = recipe.name
        self._optimizer = recipe.build(groups)
        self._guard = Guard(self._optimizer)
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._ema = ema.Ema(list(self._parameters.values()), setting.ema) if setting.ema else None
        sizes = [torch.Size(shape).numel() for p in self._parameters.values() for shape in recipe.shapes(p).values()]
        self.state_bytes = 4 * (
            sum(sizes) + (2 if self._ema else 1) * sum(p.numel() for p in self._parameters.values())
        )

    def accumulate(self, batches: Sequence[Callable[[], Batch]], loss: Loss, scale: float) -> torch.Tensor:
        total = torch.zeros((), device=self._device)
        for i, batch in enumerate(batches):
            alone = self._ranks > 1 and i < len(batches) - 1
            with self._model.no_sync() if alone else contextlib.nullcontext():
                value = loss(self._model, batch().to(self._device))
                (value * (scale * self._ranks)).backward()  # DDP averages over ranks; the sum is wanted
            total += value.detach()
        return total

    def step(self, learning_rate: float) -> torch.Tensor:
        set_learning_rate(self._optimizer, learning_rate)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters.values(), self._max_grad_norm)
        if self._guard.see(norm):
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._ema is not None:
            self._ema.update()
        return norm

    def export(self) -> Iterator[Fragment]:
        """The ranks divide the elements of all tensors, in order, evenly between them."""
        elements = self.state_bytes // 4
        begin, end = (elements * rank // self._ranks for rank in (self._rank, self._rank + 1))
        at = 0
        for i, (name, parameter) in enumerate(self._parameters.items()):
            size = parameter.numel() * (1 if self._ema is None else 2)
            size += sum(math.prod(shape) for shape in self._recipe.shapes(parameter).values())
            if at + size < begin or at > end:  # its states need not be computed
                at += size
                continue
            for kind, value in self._tensors(i, parameter):
                low, high = (min(max(edge - at, 0), value.numel()) for edge in (begin, end))
                yield Fragment(kind, name, tuple(value.shape), low, value.flatten()[low:high])
                at += value.numel()

    def _tensors(self, i: int, parameter: nn.Parameter) -> Iterator[tuple[str, torch.Tensor]]:
        yield WEIGHTS, parameter.detach()
        if self._ema is not None:
            yield ema.KIND, self._ema.averages[i]
        yield from states_of(self._recipe, self._optimizer, parameter)

    @torch.no_grad()
    def restore(self, read: ReadState, steps: int) -> None:
        for i, (name, parameter) in enumerate(self._parameters.items()):
            _fill(parameter, functools.partial(read, WEIGHTS, name))
            if self._ema is not None:
                _fill(self._ema.averages[i], functools.partial(read, ema.KIND, name))
            states = {
                kind: read(kind, name, 0, math.prod(shape)).view(shape)
                for kind, shape in self._recipe.shapes(parameter).items()
            }
            self._recipe.write(self._optimizer, parameter, states, steps)

    @torch.no_grad()
    def load(self, read: ReadWeights) -> None:
        for name, parameter in self._parameters.items():
            _fill(parameter, functools.partial(read, name))

    def refresh(self) -> None:
        pass

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        return ema.in_force(self._ema)

    def unsharded(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def whole(self) -> nn.Module:
        return self.module


def _fill(tensor: torch.Tensor, read: Callable[[int, int], torch.Tensor]) -> None:
    tensor.copy_(read(0, tensor.numel()).view(tensor.shape))
