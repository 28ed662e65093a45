"""Muon (torch's) for the matrices inside the model, AdamW for all else: embeddings, heads, norms, biases.

The update is scaled to AdamW's usual size (https://arxiv.org/abs/2502.16982), so one learning rate serves both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from finetune_trainer.train.optimizers.adamw import AdamW
from finetune_trainer.train.optimizers.recipe import Group

_MOMENTUM = "momentum_buffer"
_HEADS = ("score", "classifier")


class _Both(torch.optim.Optimizer):
    """Two optimizers as one. `param_groups` are theirs, the same objects."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts
        self.param_groups = [group for part in parts for group in part.param_groups]
        self._part_of = {id(p): part for part in parts for group in part.param_groups for p in group["params"]}

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()

    def part_of(self, parameter: nn.Parameter) -> torch.optim.Optimizer:
        return self._part_of[id(parameter)]


class Muon:
    """See `recipe.Recipe`."""

    name = "muon"
    elementwise = False

    def __init__(self, model: nn.Module) -> None:
        outer = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        outer += [head.weight] if head is not None else []
        outer += [p for name, p in model.named_parameters() if name.split(".")[0] in _HEADS]
        self._outer = {id(parameter) for parameter in outer}
        self._adamw = AdamW()

    def is_hidden(self, parameter: nn.Parameter) -> bool:
        """Whether Muon trains it."""
        return parameter.ndim == 2 and id(parameter) not in self._outer

    def build(self, groups: list[Group]) -> torch.optim.Optimizer:
        hidden, others = [], []
        for group in groups:
            for part, wanted in ((hidden, True), (others, False)):
                parameters = [p for p in group["params"] if self.is_hidden(p) is wanted]
                if parameters:
                    part.append({**group, "params": parameters})
        parts: list[torch.optim.Optimizer] = []
        if hidden:
            parts.append(torch.optim.Muon(hidden, lr=0.0, adjust_lr_fn="match_rms_adamw"))
        if others:
            parts.append(self._adamw.build(others))
        return _Both(parts)

    def shapes(self, parameter: nn.Parameter) -> dict[str, tuple[int, ...]]:
        return {_MOMENTUM: tuple(parameter.shape)} if self.is_hidden(parameter) else self._adamw.shapes(parameter)

    def read(self, optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
        assert isinstance(optimizer, _Both)
        part = optimizer.part_of(parameter)
        if not self.is_hidden(parameter):
            return self._adamw.read(part, parameter)
        state = part.state.get(parameter, {})
        return {_MOMENTUM: state[_MOMENTUM]} if _MOMENTUM in state else {}

    def write(
        self, optimizer: torch.optim.Optimizer, parameter: nn.Parameter, states: dict[str, torch.Tensor], steps: int
    ) -> None:
        assert isinstance(optimizer, _Both)
        part = optimizer.part_of(parameter)
        if self.is_hidden(parameter):
            part.state[parameter] = {_MOMENTUM: torch.empty_like(parameter).copy_(states[_MOMENTUM])}
        else:
            self._adamw.write(part, parameter, states, steps)
