"""What makes two configs the same training."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.train.identity import config_hash, result_hash, same_result, same_training

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
        {"model": {"uri": "hf://a/b", "caBundleRef": {"name": "company"}}},
        {"evaluation": {"baseline": False}},
        {"output": {"uri": "pvc://out/y"}},
        {"workspace": {"uri": "pvc://copy"}},
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


@pytest.mark.parametrize(
    ("changed", "stands"),
    [
        ({}, True),
        ({"output": {"uri": "pvc://out/y"}}, True),
        ({"evaluation": {"baseline": False}}, False),
        ({"training": {"seed": 2}}, False),
    ],
)
def test_a_finished_result_stands_while_it_was_measured_the_same(changed: dict[str, Any], stands: bool) -> None:
    now = FineTuneJobSpec.model_validate(SPEC | changed)
    assert (result_hash(FineTuneJobSpec.model_validate(SPEC)) in same_result(now)) is stands


def test_checkpoints_and_results_of_version_0_1_still_count() -> None:
    earlier = "1daf2effabfac34db6b81436db8c4c787c0aaa165216eb87f968c80e2d3e65cc"
    now = FineTuneJobSpec.model_validate(SPEC)
    assert earlier in same_training(now)
    assert earlier in same_result(now)
