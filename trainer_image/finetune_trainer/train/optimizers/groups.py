"""Parameter groups: biases and norms are not decayed, and LoRA+ trains B matrices faster than A."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from finetune_trainer.train.optimizers.recipe import Group

_B = ("lora_B", "lora_embedding_B")


def groups(named: Iterable[tuple[str, nn.Parameter]], *, weight_decay: float, plus_ratio: float = 1.0) -> list[Group]:
    """`named` are the trainable parameters. At most four groups, none empty, in an order that depends on the names alone."""
    made: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        decay = 0.0 if parameter.ndim < 2 or "norm" in name.lower() else weight_decay
        ratio = plus_ratio if any(b in name for b in _B) else 1.0
        made.setdefault((decay, ratio), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "ratio": ratio} for (decay, ratio), parameters in made.items()
    ]


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """The schedule's rate, times each group's ratio."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["ratio"]


def by_name(groups: list[Group], model: nn.Module) -> list[Group]:
    """The same with names instead of parameters, which are taken out: those of a model that is being sharded live no longer than needed."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [{**group, "params": [names[id(parameter)] for parameter in _taken(group)]} for group in groups]


def of_names(groups: list[Group], model: nn.Module) -> list[Group]:
    """From `by_name` back, with the parameters that the model has now."""
    parameters = dict(model.named_parameters())
    return [{**group, "params": [parameters[name] for name in group["params"]]} for group in groups]


def _taken(group: Group) -> list[nn.Parameter]:
    taken, group["params"] = group["params"], []
    return taken
