"""Exponential moving average of trained weights, beside them wherever they lie: whole, or this rank's part of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch

KIND = "ema"
"""What a checkpoint calls it."""


class Ema:
    """`weights` are fp32 tensors that the engine updates in place; `averages` has one for each, in the same order."""

    def __init__(self, weights: Sequence[torch.Tensor], decay: float) -> None:
        self._weights = list(weights)
        self._decay = decay
        self.averages = [weight.detach().clone() for weight in weights]

    @torch.no_grad()
    def update(self) -> None:
        """After each optimizer step: average = decay * average + (1 - decay) * weight."""
        torch._foreach_lerp_(self.averages, [weight.detach() for weight in self._weights], 1.0 - self._decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange weights and averages, a tensor at a time. Twice changes nothing."""
        for weight, average in zip(self._weights, self.averages, strict=True):
            kept = weight.detach().clone()
            weight.detach().copy_(average)
            average.copy_(kept)


def _nothing() -> None: ...


@contextlib.contextmanager
def in_force(
    kept: Ema | None, *, before: Callable[[], None] = _nothing, after: Callable[[], None] = _nothing
) -> Iterator[None]:
    """Inside, the weights are their averages; nothing happens without any. `before` and `after` each exchange, what an engine needs."""
    if kept is None:
        yield
        return

    def exchange() -> None:
        before()
        kept.swap()
        after()

    exchange()
    try:
        yield
    finally:
        exchange()
