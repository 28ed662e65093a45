"""Strategy ddp: every rank holds everything and gradients are averaged once a step. A single process is its simplest case."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from accelerate import Accelerator
from torch import nn

from finetune_trainer.tasks.base import Batch
from finetune_trainer.train.engines.engine import Loss, Named
from finetune_trainer.train.optimizers.adamw import MOMENTS


class DdpEngine:
    """See `engine.Engine`."""

    even = False

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, *, max_grad_norm: float
    ) -> None:
        self._model = accelerator.prepare_model(model)
        self._optimizer = optimizer
        self._ranks = accelerator.num_processes
        self._device = accelerator.device
        self._max_grad_norm = max_grad_norm
        self.module = model
        self.name = type(self._model).__name__ if self._ranks > 1 else "single process"
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}

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
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        norm = torch.nn.utils.clip_grad_norm_(self._parameters.values(), self._max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    def export(self) -> Iterator[Named]:
        for name, parameter in self._parameters.items():
            yield "weights", name, parameter.detach().float().cpu()
            state = self._optimizer.state.get(parameter, {})
            for moment in MOMENTS:
                value = state.get(moment)
                yield moment, name, torch.zeros_like(parameter, device="cpu") if value is None else value.float().cpu()

    @torch.no_grad()
    def restore(self, read: Callable[[str, str], torch.Tensor], steps: int) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(read("weights", name))
            self._optimizer.state[parameter] = {
                "step": torch.tensor(float(steps), device=parameter.device),
                **{moment: torch.empty_like(parameter).copy_(read(moment, name)) for moment in MOMENTS},
            }
