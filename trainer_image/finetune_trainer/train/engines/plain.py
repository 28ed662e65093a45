"""From a module whose parameters are sharded back to one with plain parameters, to be saved."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def with_plain_parameters(module: nn.Module, make: Callable[[nn.Parameter], torch.Tensor]) -> nn.Module:
    """Put `make(parameter)` in the place of every parameter, in the module itself. Tied ones stay tied."""
    made: dict[int, nn.Parameter] = {}
    for owner in module.modules():
        for parameter in list(owner._parameters.values()):
            if parameter is not None and id(parameter) not in made:
                made[id(parameter)] = nn.Parameter(make(parameter), requires_grad=parameter.requires_grad)
        owner._parameters = {
            name: None if parameter is None else made[id(parameter)] for name, parameter in owner._parameters.items()
        }
    return module
