"""The head of a classifier: everything outside the model that it was pretrained as."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel

_POOLER = "pooler"
"""Inside the pretrained model of BERT's kin, but used by classifiers alone: language models' checkpoints lack it."""


def of_head(model: PreTrainedModel, parameter: str) -> bool:
    """Whether a parameter belongs to the head, so that a checkpoint may lack it or hold it for other labels."""
    prefix = model.base_model_prefix
    inside = bool(prefix) and hasattr(model, prefix) and parameter.startswith(f"{prefix}.")
    return not inside or f".{_POOLER}." in parameter


def modules(model: PreTrainedModel, missing: Iterable[str] = ()) -> list[str]:
    """Names of the modules that make up the head, and of those that `missing` parameters belong to."""
    backbone = model.base_model
    names = [
        name
        for name, child in model.named_children()
        if child is not backbone and any(True for _ in child.parameters())
    ]
    poolers = {parameter[: parameter.index(f".{_POOLER}.") + len(_POOLER) + 1] for parameter in missing if f".{_POOLER}." in parameter}  # fmt: skip
    return names + sorted(poolers)


def poolers(model: nn.Module) -> list[str]:
    """Names of modules that a checkpoint may lack."""
    return [name for name, _ in model.named_modules() if name.rsplit(".", 1)[-1] == _POOLER]
