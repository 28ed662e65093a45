"""Adafactor, transformers' own, with the schedule's learning rate, as transformers.Trainer runs it.

It keeps a row and a column of second moments for each matrix instead of a value for each element.
"""

from __future__ import annotations

import torch
from torch import nn

from finetune_trainer.train.optimizers.recipe import Group

_ROW, _COLUMN, _WHOLE = "exp_avg_sq_row", "exp_avg_sq_col", "exp_avg_sq"


class Adafactor:
    """See `recipe.Recipe`."""

    name = "adafactor"
    elementwise = False

    def build(self, groups: list[Group]) -> torch.optim.Optimizer:
        from transformers.optimization import Adafactor as Theirs

        return Theirs(groups, lr=0.0, scale_parameter=False, relative_step=False)

    def shapes(self, parameter: nn.Parameter) -> dict[str, tuple[int, ...]]:
        shape = tuple(parameter.shape)
        if len(shape) < 2:
            return {_WHOLE: shape}
        return {_ROW: shape[:-1], _COLUMN: shape[:-2] + shape[-1:]}

    def read(self, optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
        state = optimizer.state.get(parameter, {})
        return {name: state[name] for name in (_ROW, _COLUMN, _WHOLE) if name in state}

    def write(
        self, optimizer: torch.optim.Optimizer, parameter: nn.Parameter, states: dict[str, torch.Tensor], steps: int
    ) -> None:
        # RMS is only looked at with scale_parameter, and is made anew in each step.
        mine = {name: states[name].to(parameter.device, copy=True) for name in self.shapes(parameter)}
        optimizer.state[parameter] = {"step": steps, "RMS": 0, **mine}
