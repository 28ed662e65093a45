"""From a module whose parameters are sharded back to one with plain parameters, to be described."""

from __future__ import annotations

import torch
from torch import nn


def with_empty_parameters(module: nn.Module) -> nn.Module:
    """Put an empty one in the place of every parameter, in the module itself. Tied ones stay tied."""
    made: dict[int, nn.Parameter] = {}
    for owner in module.modules():
        for parameter in list(owner._parameters.values()):
            if parameter is not None and id(parameter) not in made:
                empty = torch.empty(0, dtype=parameter.dtype)
                made[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        owner._parameters = {
            name: None if parameter is None else made[id(parameter)] for name, parameter in owner._parameters.items()
        }
    return module
