"""Messages name fields as a manifest has them."""

from __future__ import annotations

import pytest
from finetune_api.contract import Cause


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lower training.learningRate or data.maxLength.", "lower spec.training.learningRate or spec.data.maxLength."),
        ("spec.data.format and data.checks.minExamples", "spec.data.format and spec.data.checks.minExamples"),
        ("data.train[0].uri: is empty", "spec.data.train[0].uri: is empty"),
        ("raise pods.train.resources.limits.memory", "raise spec.pods.train.resources.limits.memory"),
        ("method.type: qlora", "spec.method.type: qlora"),
        ("model.safetensors is missing", "model.safetensors is missing"),
        ("data.train.jsonl:7 and /x/data.train and pods.log", "data.train.jsonl:7 and /x/data.train and pods.log"),
    ],
)
def test_fields_of_a_cause_are_paths_below_spec(text: str, expected: str) -> None:
    cause = Cause(code="InvalidSpec", message=text, remedy=text)
    assert (cause.message, cause.remedy) == (expected, expected)
