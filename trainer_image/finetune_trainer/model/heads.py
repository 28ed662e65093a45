"""The head of a classifier: everything outside the model that it was pretrained as."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel

_USUAL = ("score", "classifier", "classification_head")
_POOLER = "pooler"
"""Inside the pretrained model of BERT's kin, but used by classifiers alone: language models' checkpoints lack it."""


def of_head(model: PreTrainedModel, parameter: str) -> bool:
    """Whether a parameter belongs to the head, so that a checkpoint may lack it or hold it for other labels."""
    return parameter.partition(".")[0] in _outside(model) or f".{_POOLER}." in parameter


def modules(model: PreTrainedModel, missing: Iterable[str] = ()) -> list[str]:
    """Names of the modules that make up the head, and of those that `missing` parameters belong to."""
    names = [name for name in _outside(model) if next(model.get_submodule(name).parameters(), None) is not None]
    poolers = {parameter[: parameter.index(f".{_POOLER}.") + len(_POOLER) + 1] for parameter in missing if f".{_POOLER}." in parameter}  # fmt: skip
    return names + sorted(poolers)


def poolers(model: nn.Module) -> list[str]:
    """Names of modules that a checkpoint may lack."""
    return [name for name, _ in model.named_modules() if name.rsplit(".", 1)[-1] == _POOLER]


def _outside(model: PreTrainedModel) -> list[str]:
    """Names of the model's parts beside the pretrained one; of a model that does not tell which that is, those with a head's name."""
    backbone = model.base_model
    return [
        name
        for name, child in model.named_children()
        if (child is not backbone if backbone is not model else name in _USUAL)
    ]
