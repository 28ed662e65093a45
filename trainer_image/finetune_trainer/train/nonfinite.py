"""Where the first number that is none appeared, when a step's micro-batches are run once more.

Nothing is watched in good steps. Only after a loss or gradient was found to be non-finite is the step repeated with hooks
on every module: they look at each output on its way forward and at its gradient on the way back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

IN_THE_WEIGHTS = "the weights themselves are not finite"


@dataclass(frozen=True, slots=True)
class Spoilt:
    """`where`: name of a module. `turn` counts micro-batches from 0.

    `shape` are the first two dimensions of the tensor, and `places` the indices along them (row, column) that hold
    something bad; both empty for a tensor with fewer.
    """

    where: str
    what: str
    turn: int
    shape: tuple[int, ...] = ()
    places: tuple[tuple[int, int], ...] = ()

    @property
    def said(self) -> str:
        return f"{self.what} {self.where}"


class Search:
    """Holds what was found. `turn` is to be set before each micro-batch."""

    def __init__(self) -> None:
        self.turn = 0
        self.forward: Spoilt | None = None
        self.backward: Spoilt | None = None

    @property
    def found(self) -> Spoilt | None:
        """What happened on the way forward explains what came after it."""
        return self.forward or self.backward


@contextlib.contextmanager
def searching(module: nn.Module) -> Iterator[Search]:
    """While it lasts, the first spoilt output and the first spoilt gradient of `module`'s parts are noted.

    An output is the culprit when what came in was finite. Compiled layers run as they were written meanwhile.
    """
    search = Search()
    handles = [
        part.register_forward_hook(_Hook(search, name or type(module).__name__, part), with_kwargs=True)
        for name, part in module.named_modules()
    ]
    try:
        with torch.compiler.set_stance("force_eager"):
            yield search
    finally:
        for handle in handles:
            handle.remove()


class _Hook:
    def __init__(self, search: Search, name: str, part: nn.Module) -> None:
        self._search = search
        self._name = name
        self._part = part

    def __call__(self, part: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        search = self._search
        for tensor in _tensors(output):
            if search.forward is None and _bad(tensor):
                inputs = [*_tensors(args), *_tensors({k: v for k, v in kwargs.items() if "mask" not in k})]
                if not any(_bad(one) for one in inputs):
                    search.forward = Spoilt(self._name, self._forward_words(), search.turn, *_places(tensor))
            if search.backward is None and tensor.requires_grad:
                tensor.register_hook(self._back)

    def _forward_words(self) -> str:
        if any(_bad(p) for p in self._part.parameters(recurse=False)):
            return f"{IN_THE_WEIGHTS} in"
        return "the first bad output is that of"

    def _back(self, gradient: torch.Tensor) -> None:
        search = self._search
        if search.backward is None and _bad(gradient):
            search.backward = Spoilt(
                self._name, "the first bad gradient is that of the output of", search.turn, *_places(gradient)
            )


def broken_weights(module: nn.Module) -> str | None:
    """Name of the first trained weight that is not finite: then an update with bad gradients was made already."""
    return next((name for name, p in module.named_parameters() if p.requires_grad and _bad(p.detach())), None)


def _bad(tensor: torch.Tensor) -> bool:
    tensor = _local(tensor)
    return tensor.is_floating_point() and not bool(torch.isfinite(tensor.detach()).all())


def _places(tensor: torch.Tensor) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    """`shape` and `places` of a Spoilt."""
    tensor = _local(tensor).detach()
    if tensor.ndim < 2:
        return (), ()
    bad = ~torch.isfinite(tensor)
    found = torch.nonzero(bad.flatten(2).any(2) if tensor.ndim > 2 else bad).tolist()
    return tuple(tensor.shape[:2]), tuple((row, column) for row, column in found)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """Of a DTensor, this rank's part."""
    return getattr(tensor, "_local_tensor", tensor)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):  # a ModelOutput too
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
