"""The output head of a language model, worked only where something is predicted.

While `predicting` is active, the head's own forward is another one: it takes the hidden states at the trained positions
only. The module itself is still called, so whatever an engine hangs on it (gathering of sharded weights, their release)
happens as ever, and any head works: tied, quantised, with an adapter on it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import nn

from finetune_trainer.model.wrapped import innermost
from finetune_trainer.tasks.base import IGNORED
from finetune_trainer.tasks.fused_loss import After, fused_cross_entropy

Way = Literal["fused", "picked", "full"]
"""fused: no logits at all. picked: logits at trained positions alone. full: all logits, where no head is to be found."""


@dataclass(frozen=True, slots=True)
class Targets:
    """`row` [k] and `column` [k] of the positions that predict something in the batch, and the token `label` [k] that each predicts.

    Columns count from the right end of what the head is given, so that virtual tokens before a row move nothing:
    column = index - width, always negative.
    """

    row: torch.Tensor
    column: torch.Tensor
    label: torch.Tensor

    def pick(self, states: torch.Tensor) -> torch.Tensor:
        """[rows, width, n] -> [k, n]."""
        width = states.shape[1]
        return states.flatten(0, 1).index_select(0, self.row * width + (self.column + width))


def loss_of(
    model: nn.Module,
    inputs: dict[str, object],
    targets: Targets,
    way: Way,
    *,
    after: After,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Sum of the cross-entropies at the targets, a float32 scalar."""
    if way == "fused":
        with _predicting(linears(head_of(model)), _Fusing(targets, after, label_smoothing)) as fusing:
            out = model(**inputs, use_cache=False).logits
        # What the model made of the head's output is worth nothing, but its graph is: engines wait for its gradients.
        return fusing.loss + 0.0 * out.sum()
    return F.cross_entropy(
        logits_of(model, inputs, targets, way).float(),
        targets.label,
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=label_smoothing,
    )


def logits_of(model: nn.Module, inputs: dict[str, object], targets: Targets, way: Way) -> torch.Tensor:
    """Logits [k, vocabulary] at the targets, as the model makes them."""
    if way == "full":
        return targets.pick(model(**inputs, use_cache=False).logits)
    head = head_of(model)
    with _predicting(
        [head] if head is not None else [], lambda _, forward, states: forward(targets.pick(states))[None]
    ):
        return model(**inputs, use_cache=False).logits[0]


def made_of(model: nn.Module, inputs: dict[str, object], logits: torch.Tensor) -> torch.Tensor:
    """What the model makes of its head's output, were that `logits` [1, k, vocabulary]."""
    with _predicting([head_of(model)], lambda _, __, ___: logits):
        return model(**inputs, use_cache=False).logits


def head_of(model: nn.Module) -> nn.Module | None:
    """The module whose output the logits are made of, inside whatever wraps the model."""
    find = getattr(innermost(model), "get_output_embeddings", None)
    return find() if find is not None else None


def linears(head: nn.Module | None) -> list[nn.Module]:
    """The plain linear layers that do the head's work (peft keeps two, of which one is called); empty if it is anything else."""
    if head is None:
        return []
    saved = getattr(head, "modules_to_save", None)
    parts = [head.original_module, *saved.values()] if isinstance(saved, nn.ModuleDict) else [head]
    plain = all(isinstance(part, nn.Linear) and type(part).forward is nn.Linear.forward for part in parts)
    return parts if plain else []


@dataclass
class _Fusing:
    """Stands for a linear layer's forward, and keeps what comes out."""

    targets: Targets
    after: After
    label_smoothing: float
    loss: torch.Tensor = field(init=False)

    def __call__(self, layer: nn.Linear, _: object, states: torch.Tensor) -> torch.Tensor:
        self.loss = fused_cross_entropy(
            self.targets.pick(states),
            layer.weight,
            layer.bias,
            self.targets.label,
            after=self.after,
            label_smoothing=self.label_smoothing,
        )
        return self.loss.reshape(1, 1, 1)


Instead = TypeVar(
    "Instead", bound=Callable[[nn.Module, Callable[[torch.Tensor], torch.Tensor], torch.Tensor], torch.Tensor]
)


@contextlib.contextmanager
def _predicting(modules: list[nn.Module], instead: Instead) -> Iterator[Instead]:
    """Calling one of `modules` gives instead(module, its own forward, states) meanwhile."""
    before = [module.__dict__.get("forward") for module in modules]
    for module in modules:
        module.forward = functools.partial(instead, module, module.forward)
    try:
        yield instead
    finally:
        for module, own in zip(modules, before, strict=True):
            if own is None:
                del module.forward
            else:
                module.forward = own
