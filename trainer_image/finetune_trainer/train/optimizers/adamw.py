"""AdamW with the field's usual groups: biases and norms are not decayed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state of each parameter, beside the count of steps."""


def adamw(named: Iterable[tuple[str, nn.Parameter]], *, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """Fused: one kernel a step, on CPU and CUDA alike."""
    decayed, plain = [], []
    for name, parameter in named:
        group = plain if weight_decay == 0 or parameter.ndim < 2 or "norm" in name.lower() else decayed
        group.append(parameter)
    groups = [
        {"params": parameters, "weight_decay": decay}
        for parameters, decay in ((decayed, weight_decay), (plain, 0.0))
        if parameters
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)
