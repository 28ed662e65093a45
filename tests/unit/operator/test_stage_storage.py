"""What each stage sees: claims, and Secrets in prepare alone."""

from __future__ import annotations

from finetune_api.spec import FineTuneJobSpec
from finetune_operator.domain.builders.storage import claims, secrets

SPEC = FineTuneJobSpec.model_validate(
    {
        "model": {"uri": "hf://org/model", "secretRef": {"name": "hub"}},
        "method": {"type": "lora"},
        "data": {
            "train": [
                {"uri": "pvc://data/a.jsonl"},
                {"uri": "hf://datasets/org/set/b.jsonl", "secretRef": {"name": "set"}},
            ]
        },
        "workspace": {"uri": "pvc://scratch/work"},
        "output": {"uri": "pvc://models/out"},
    }
)


def test_credentials_reach_only_the_stage_that_downloads() -> None:
    assert secrets(SPEC, "prepare") == ["hub", "set"]
    assert secrets(SPEC, "train") == secrets(SPEC, "publish") == []


def test_a_stage_sees_the_claims_that_it_uses_and_writes_to_few() -> None:
    assert claims(SPEC, "prepare") == {"data": False, "scratch": True, "models": True}
    assert claims(SPEC, "train") == {"scratch": True}
    assert claims(SPEC, "publish") == {"scratch": True, "models": True}


def test_an_adapter_to_go_on_from_is_there_where_the_model_is() -> None:
    adapter = {"uri": "pvc://adapters/first"}
    spec = FineTuneJobSpec.model_validate(SPEC.wire() | {"method": {"type": "lora", "initFrom": adapter}})
    assert claims(spec, "prepare")["adapters"] is claims(spec, "train")["adapters"] is False
    private = adapter | {"uri": "hf://org/adapter", "secretRef": {"name": "private"}}
    spec = FineTuneJobSpec.model_validate(SPEC.wire() | {"method": {"type": "lora", "initFrom": private}})
    assert secrets(spec, "prepare") == ["hub", "private", "set"]
