"""What makes two runs the same training: the groups of the spec that cannot change once a job exists."""

from __future__ import annotations

from typing import Any, get_args

from finetune_api.spec import FineTuneJobSpec
from finetune_api.training import ActivationCheckpointing

from finetune_trainer.data.digests import json_digest

FIXED = ("model", "method", "data", "training", "evaluation", "workspace", "output")
_MAY_CHANGE = ("secretRef", "endpoint")  # of locations: a rotated Secret, a moved mirror


def config_hash(spec: FineTuneJobSpec) -> str:
    """sha256 (hex) over the fixed groups. Compute, pods, retries and credentials do not enter, nor fields that are as by default: a new field changes no run under way."""
    wire = spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    return json_digest({name: _strip(wire.get(name)) for name in FIXED})


def same_training(spec: FineTuneJobSpec) -> frozenset[str]:
    """Return the hashes of all configs that train the same. Activation checkpointing changes memory and speed alone, and may differ
    between attempts; it stays in `config_hash` so that checkpoints of earlier versions keep their hash."""
    kinds = (None, *get_args(ActivationCheckpointing))
    trainings = (spec.training.model_copy(update={"activation_checkpointing": kind}) for kind in kinds)
    return frozenset(config_hash(spec.model_copy(update={"training": training})) for training in trainings)


def _strip(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strip(item) for key, item in value.items() if not ("uri" in value and key in _MAY_CHANGE)}
    if isinstance(value, list):
        return [_strip(item) for item in value]
    return value
