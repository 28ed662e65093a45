"""What makes two configs the same training."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.train.identity import config_hash, same_training

SPEC: dict[str, Any] = {
    "model": {"uri": "hf://a/b", "secretRef": {"name": "old"}},
    "method": {"type": "lora"},
    "data": {"train": [{"uri": "hf://datasets/a/b/x.jsonl"}]},
    "training": {"seed": 1},
    "workspace": {"uri": "pvc://scratch"},
    "output": {"uri": "pvc://out/x"},
}


def hashed(**changed: Any) -> str:
    return config_hash(FineTuneJobSpec.model_validate(SPEC | changed))


@pytest.mark.parametrize(
    "changed",
    [
        {"compute": {"nodes": 4}},
        {"checkpoint": {"keep": 9}},
        {"suspend": True},
        {"model": {"uri": "hf://a/b", "secretRef": {"name": "new"}, "endpoint": "https://mirror"}},
        {"data": {"train": [{"uri": "hf://datasets/a/b/x.jsonl", "secretRef": {"name": "new"}}]}},
    ],
)
def test_what_may_change_does_not_count(changed: dict[str, Any]) -> None:
    assert hashed(**changed) == hashed()


@pytest.mark.parametrize(
    "changed",
    [
        {"model": {"uri": "hf://a/c"}},
        {"model": {"uri": "hf://a/b", "revision": "x"}},
        {"training": {"seed": 2}},
        {"method": {"type": "full"}},
        {"evaluation": {"baseline": False}},
        {"output": {"uri": "pvc://out/y"}},
    ],
)
def test_what_is_fixed_counts(changed: dict[str, Any]) -> None:
    assert hashed(**changed) != hashed()


@pytest.mark.parametrize(
    ("training", "resumes"),
    [
        ({"seed": 1}, True),
        ({"seed": 1, "activationCheckpointing": "none"}, True),
        ({"seed": 1, "activationCheckpointing": "full"}, True),
        ({"seed": 2, "activationCheckpointing": "none"}, False),
        ({"seed": 1, "optimizer": "adamw-8bit"}, False),
    ],
)
def test_activation_checkpointing_may_change_between_attempts(training: dict[str, Any], resumes: bool) -> None:
    now = FineTuneJobSpec.model_validate(SPEC | {"training": {"seed": 1, "activationCheckpointing": "selective"}})
    assert (hashed(training=training) in same_training(now)) is resumes
