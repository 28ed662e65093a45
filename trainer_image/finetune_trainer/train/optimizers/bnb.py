"""AdamW by bitsandbytes: moments in 8 bits, or in memory that moves to the host when the GPU is full (paged), or both.

8-bit moments are exported as floating point and rounded again when they are written back. That changes a value by less than
one step of the 8-bit map: at most 1.5% of the largest value in its block of 256.
"""

from __future__ import annotations

import torch
from bitsandbytes import functional
from bitsandbytes.optim import AdamW8bit, PagedAdamW, PagedAdamW8bit
from torch import nn

from finetune_trainer.train.optimizers.adamw import MOMENTS
from finetune_trainer.train.optimizers.recipe import Group

NAMES = {"adamw-8bit": AdamW8bit, "paged-adamw": PagedAdamW, "paged-adamw-8bit": PagedAdamW8bit}
_BLOCK = 256


class BitsAndBytes:
    """See `recipe.Recipe`. Moments have AdamW's names, so that a checkpoint tells nothing of their bits."""

    elementwise = False

    def __init__(self, name: str) -> None:
        self.name = name

    def build(self, groups: list[Group]) -> torch.optim.Optimizer:
        return NAMES[self.name](groups, lr=0.0)

    def shapes(self, parameter: nn.Parameter) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys(MOMENTS, tuple(parameter.shape))

    def read(self, optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
        state = optimizer.state.get(parameter, {})
        return {moment: _float(state, i) for i, moment in enumerate(MOMENTS, start=1) if f"state{i}" in state}

    def write(
        self, optimizer: torch.optim.Optimizer, parameter: nn.Parameter, states: dict[str, torch.Tensor], steps: int
    ) -> None:
        for index, group in enumerate(optimizer.param_groups):
            for place, one in enumerate(group["params"]):
                if one is parameter:
                    optimizer.init_state(group, parameter, index, place)
        state = optimizer.state[parameter]
        state["step"] = steps
        for i, moment in enumerate(MOMENTS, start=1):
            value = states[moment].to(parameter.device)
            if f"absmax{i}" in state:
                code, scale = functional.quantize_blockwise(value, code=state[f"qmap{i}"], blocksize=_BLOCK)
                state[f"absmax{i}"].copy_(scale.absmax)
                value = code
            state[f"state{i}"].copy_(value.view(state[f"state{i}"].shape))


def _float(state: dict[str, torch.Tensor], i: int) -> torch.Tensor:
    """The moment `i`. Paged memory looks like the host's to torch, so its scales must come there."""
    stored = state[f"state{i}"]
    if f"absmax{i}" not in state:
        return stored
    absmax, code = state[f"absmax{i}"].to(stored.device), state[f"qmap{i}"].to(stored.device)
    return functional.dequantize_blockwise(stored, absmax=absmax, code=code, blocksize=_BLOCK)
