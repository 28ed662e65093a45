"""What each stage sees: claims, and Secrets and certificates in prepare alone."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_api.compute import ComputeSpec
from finetune_api.contract import secret_prefix
from finetune_api.pods import PodSettings
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import STAGES, Stage
from finetune_operator.domain.builders.storage import claims, claims_needing_many, secrets, volumes

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
    pod, mounts = volumes(spec, PodSettings(), "prepare")
    places = {mount["name"]: mount for mount in mounts}
    found = {
        volume["configMap"]["name"]: places[volume["name"]]
        for volume in pod
        if volume["name"].startswith("finetune-certificates")
    }
    assert {name: mount["mountPath"] for name, mount in found.items()} == {
        "company": "/etc/finetune/ca/company",
        "other": "/etc/finetune/ca/other",
    }
    assert all(mount["readOnly"] for mount in found.values())
    for stage in ("train", "publish"):
        assert "/etc/finetune/ca" not in str(volumes(spec, PodSettings(), stage))


def test_a_stage_sees_the_claims_that_it_uses_and_writes_to_few() -> None:
    assert claims(SPEC, "prepare") == {"data": False, "scratch": True, "models": True}
    assert claims(SPEC, "train") == {"scratch": True}
    assert claims(SPEC, "publish") == {"scratch": True, "models": True}


def test_a_gang_of_several_nodes_needs_claims_that_several_nodes_mount() -> None:
    on_claims = SPEC.wire() | {"model": {"uri": "pvc://models/base"}}
    of_nodes = [FineTuneJobSpec.model_validate(on_claims | {"compute": {"nodes": nodes}}) for nodes in (1, 2)]
    assert [claims_needing_many(spec) for spec in of_nodes] == [{}, {"models": False, "scratch": True}]


OWN = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}}
MOUNTS = [
    # Mounts of the user, the path where theirs is found, and the volume that is mounted there.
    ([{"name": "shm", "mountPath": "/dev/shm"}], "/dev/shm", "shm"),
    ([{"name": "shm", "mountPath": "/tmp/"}], "/tmp/", "shm"),
    ([{"name": "shm", "mountPath": "/scratch"}], "/scratch", "shm"),
    ([{"name": "shm", "mountPath": "/mnt/claims/scratch"}], "/mnt/claims/scratch", "shm"),
    ([{"name": "shm", "mountPath": "/etc/finetune"}], "/etc/finetune", "finetune-run-config"),
    ([], "/tmp", "finetune-tmp"),
]


@pytest.mark.parametrize(("theirs", "path", "volume"), MOUNTS)
def test_a_mount_of_the_user_replaces_ours_and_no_names_meet(
    theirs: list[dict[str, Any]], path: str, volume: str
) -> None:
    """A pod with two mounts at one path, or two volumes of one name, is refused when its stage begins."""
    cuda = SPEC.model_copy(update={"compute": ComputeSpec(device="cuda")})
    named = [{"name": name, "emptyDir": {}} for name in ("tmp", "scratch", "claim-0", "finetune-scratch")]
    settings = PodSettings(volumes=[OWN, *named], volume_mounts=theirs)
    for stage in STAGES:
        made, mounts = volumes(cuda, settings, stage)
        names, paths = [v["name"] for v in made], [m["mountPath"].rstrip("/") for m in mounts]
        assert (len(set(names)), len(set(paths))) == (len(names), len(paths))
        assert {m["name"] for m in mounts} <= set(names)
        assert next(m["name"] for m in mounts if m["mountPath"] == path) == volume


def test_shared_memory_may_have_a_size() -> None:
    for compute, expected in (
        (ComputeSpec(device="cuda"), {"medium": "Memory"}),
        (ComputeSpec(device="cpu"), None),
        (ComputeSpec(device="cpu", shared_memory="2Gi"), {"medium": "Memory", "sizeLimit": "2Gi"}),
    ):
        made, _ = volumes(SPEC.model_copy(update={"compute": compute}), PodSettings(), "train")
        assert next((v["emptyDir"] for v in made if "shared-memory" in v["name"]), None) == expected


def test_an_adapter_to_go_on_from_is_there_where_the_model_is() -> None:
    adapter = {"uri": "pvc://adapters/first"}
    spec = FineTuneJobSpec.model_validate(SPEC.wire() | {"method": {"type": "lora", "initFrom": adapter}})
    assert claims(spec, "prepare")["adapters"] is claims(spec, "train")["adapters"] is False
    private = adapter | {"uri": "hf://org/adapter", "secretRef": {"name": "private"}}
    spec = FineTuneJobSpec.model_validate(SPEC.wire() | {"method": {"type": "lora", "initFrom": private}})
    assert named(spec, "prepare") == ["hub", "private", "set"]
