"""AdamW, torch's own and fused: one kernel a step, on CPU and CUDA alike."""

from __future__ import annotations

import torch
from torch import nn

from finetune_trainer.train.optimizers.recipe import Group

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's states of each parameter, beside the count of steps."""


class AdamW:
    """See `recipe.Recipe`."""

    name = "adamw"
    elementwise = True

    def build(self, groups: list[Group]) -> torch.optim.AdamW:
        return torch.optim.AdamW(groups, lr=0.0, fused=True)

    def shapes(self, parameter: nn.Parameter) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys(MOMENTS, tuple(parameter.shape))

    def read(self, optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
        state = optimizer.state.get(parameter, {})
        return {moment: state[moment] for moment in MOMENTS if moment in state}

    def write(
        self, optimizer: torch.optim.Optimizer, parameter: nn.Parameter, states: dict[str, torch.Tensor], steps: int
    ) -> None:
        optimizer.state[parameter] = {
            "step": torch.tensor(float(steps), device=parameter.device),
            **{moment: torch.empty_like(parameter).copy_(states[moment]) for moment in MOMENTS},
        }
