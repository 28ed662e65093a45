"""What each stage sees: claims, and Secrets and certificates in prepare alone."""

from __future__ import annotations

from finetune_api.contract import secret_prefix
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Stage
from finetune_operator.domain.builders.storage import claims, secrets, volumes

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


def named(spec: FineTuneJobSpec, stage: Stage) -> list[str]:
    return [source["secretRef"]["name"] for source in secrets(spec, stage)]


def test_credentials_reach_only_the_stage_that_downloads_and_do_not_meet() -> None:
    assert secrets(SPEC, "prepare") == [
        {"prefix": secret_prefix("hub"), "secretRef": {"name": "hub"}},
        {"prefix": secret_prefix("set"), "secretRef": {"name": "set"}},
    ]
    assert secret_prefix("hub") != secret_prefix("set")
    assert secrets(SPEC, "train") == secrets(SPEC, "publish") == []


def test_certificates_are_mounted_once_and_only_where_servers_are_asked() -> None:
    mirror = {"endpoint": "https://mirror", "caBundleRef": {"name": "company"}}
    other = {"uri": "https://files/rows.jsonl", "caBundleRef": {"name": "other", "key": "own.pem"}}
    spec = FineTuneJobSpec.model_validate(
        SPEC.wire()
        | {
            "model": {"uri": "hf://org/model", **mirror},
            "data": {"train": [{"uri": "hf://datasets/org/set/b.jsonl", **mirror}, other]},
        }
    )
    pod, mounts = volumes(spec, "prepare", "config")
    places = {mount["name"]: mount for mount in mounts}
    found = {
        volume["configMap"]["name"]: places[volume["name"]]
        for volume in pod
        if volume["name"].startswith("certificates")
    }
    assert {name: mount["mountPath"] for name, mount in found.items()} == {
        "company": "/etc/finetune/ca/company",
        "other": "/etc/finetune/ca/other",
    }
    assert all(mount["readOnly"] for mount in found.values())
    for stage in ("train", "publish"):
        assert "/etc/finetune/ca" not in str(volumes(spec, stage, "config"))


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
    assert named(spec, "prepare") == ["hub", "private", "set"]
