"""What the engines ask of an optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import nn

Group = dict[str, Any]
"""A parameter group of torch: `params`, `weight_decay`, and `ratio`, its learning rate over that of the schedule."""


class Recipe(Protocol):
    """One kind of optimizer. States are named tensors of one parameter each; the count of steps is not among them."""

    name: str

    elementwise: bool
    """True when a slice of a parameter can be updated alone: every state has the parameter's shape."""

    def build(self, groups: list[Group]) -> torch.optim.Optimizer: ...

    def shapes(self, parameter: nn.Parameter) -> dict[str, tuple[int, ...]]:
        """Names and shapes of a parameter's states, whether they exist yet or not."""
        ...

    def read(self, optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
        """The states in floating point, on whatever device; empty before the first step."""
        ...

    def write(
        self, optimizer: torch.optim.Optimizer, parameter: nn.Parameter, states: dict[str, torch.Tensor], steps: int
    ) -> None:
        """Make the states those after `steps` updates. `states` are whole, in fp32, on the CPU."""
        ...


def states_of(
    kind: Recipe, optimizer: torch.optim.Optimizer, parameter: nn.Parameter
) -> Iterator[tuple[str, torch.Tensor]]:
    """All states of a parameter by name; zeros for those that no step has made yet."""
    there = kind.read(optimizer, parameter)
    for name, shape in kind.shapes(parameter).items():
        yield name, there[name] if name in there else torch.zeros(shape)
