"""What makes two configs the same training: the groups of the spec that decide the trained weights."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, get_args

from finetune_api.spec import FineTuneJobSpec
from finetune_api.training import ActivationCheckpointing

from finetune_trainer.data.digests import json_digest

_TRAINING = ("model", "method", "data", "training")
_MEASURED = (*_TRAINING, "evaluation")
_MAY_CHANGE = ("secretRef", "endpoint", "region", "caBundleRef")
"""Of locations: how the same files are reached."""
_EARLIER = (*_MEASURED, "workspace", "output")
_MIGHT_CHANGE_EARLIER = ("secretRef", "endpoint")
"""What versions up to 0.1 hashed: their checkpoints still resume."""


def config_hash(spec: FineTuneJobSpec) -> str:
    """sha256 (hex) of what decides the trained weights: a checkpoint with another hash is not resumed. Fields that are as by
    default do not enter: a new field changes no run under way."""
    return _hash(spec, _TRAINING, _MAY_CHANGE)


def result_hash(spec: FineTuneJobSpec) -> str:
    """The same with what is measured: a trained model with another hash is not published."""
    return _hash(spec, _MEASURED, _MAY_CHANGE)


def same_training(spec: FineTuneJobSpec) -> frozenset[str]:
    """Return the hashes of all configs that train the same. Activation checkpointing changes memory and speed alone, and may differ
    between attempts; it stays in `config_hash` so that checkpoints of earlier versions keep their hash."""
    return _of_variants(spec, _TRAINING)


def same_result(spec: FineTuneJobSpec) -> frozenset[str]:
    """Return the hashes of all configs that train and measure the same."""
    return _of_variants(spec, _MEASURED)


def _of_variants(spec: FineTuneJobSpec, groups: Collection[str]) -> frozenset[str]:
    kinds = (None, *get_args(ActivationCheckpointing))
    trainings = (spec.training.model_copy(update={"activation_checkpointing": kind}) for kind in kinds)
    variants = [spec.model_copy(update={"training": training}) for training in trainings]
    earlier = {_hash(variant, _EARLIER, _MIGHT_CHANGE_EARLIER) for variant in variants}
    return frozenset({_hash(variant, groups, _MAY_CHANGE) for variant in variants} | earlier)


def _hash(spec: FineTuneJobSpec, groups: Collection[str], left_out: Collection[str]) -> str:
    wire = spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    return json_digest({name: _strip(wire.get(name), left_out) for name in groups})


def _strip(value: Any, left_out: Collection[str]) -> Any:
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if not ("uri" in value and key in left_out)}
        return {key: _strip(item, left_out) for key, item in kept.items()}
    if isinstance(value, list):
        return [_strip(item, left_out) for item in value]
    return value
