"""The objects that the operator asks for."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from finetune_api.effective import PlatformDefaults, resolve
from finetune_api.finetunejob import Metadata
from finetune_api.pods import PodSettings
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import STAGES
from finetune_operator.domain.builders.job import digest, job, outdated
from finetune_operator.domain.builders.pod import grace_seconds
from finetune_operator.domain.builders.run_config import run_config
from finetune_operator.domain.builders.service import service

META = Metadata(name="bot", namespace="team", uid="u-1", generation=1)


BASE: dict[str, Any] = {
    "model": {"uri": "pvc://models/base"},
    "method": {"type": "lora"},
    "data": {"train": [{"uri": "pvc://data/train.jsonl"}]},
    "workspace": {"uri": "pvc://scratch/work"},
    "output": {"uri": "pvc://models/out"},
    "compute": {"nodes": 2, "gpusPerNode": 4},
    "pods": {"common": {"image": "trainer:1"}},
}


def spec(**changes: Any) -> FineTuneJobSpec:
    return resolve(FineTuneJobSpec.model_validate(BASE | changes), decided={})


def built(stage: Any, **changes: Any) -> dict[str, Any]:
    return job(META, spec(**changes), "abcde", stage, 1, "{}")


def parts(stage: Any, **changes: Any) -> dict[str, Any]:
    """The pod template, with the Job's own metadata as `job`."""
    made = built(stage, **changes)
    return {**made["spec"]["template"], "job": made["metadata"]}


def pod(stage: Any = "train", **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = built(stage, **changes)["spec"]["template"]["spec"]
    return found


def container(stage: Any = "train", **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = pod(stage, **changes)["containers"][0]
    return found


def env(of: dict[str, Any]) -> dict[str, Any]:
    return {variable["name"]: variable for variable in of["env"]}


CONFIG = "finetune.dev/run-config"

# Every field of PodSettings: what a user writes, and where it must be found.
SETTINGS: dict[str, tuple[Any, Callable[[dict[str, Any]], Any], Any]] = {
    "image": ("other:2", lambda t: t["spec"]["containers"][0]["image"], "other:2"),
    "image_pull_policy": ("Always", lambda t: t["spec"]["containers"][0]["imagePullPolicy"], "Always"),
    "image_pull_secrets": ([{"name": "reg"}], lambda t: t["spec"]["imagePullSecrets"], [{"name": "reg"}]),
    "service_account_name": ("robot", lambda t: t["spec"]["serviceAccountName"], "robot"),
    "labels": ({"cost": "42"}, lambda t: t["metadata"]["labels"]["cost"], "42"),
    "annotations": (
        {"note": "x", CONFIG: "stolen"},
        lambda t: t["metadata"]["annotations"],
        {"note": "x", CONFIG: "{}"},
    ),
    "node_selector": ({"disk": "ssd"}, lambda t: t["spec"]["nodeSelector"], {"disk": "ssd"}),
    "tolerations": ([{"operator": "Exists"}], lambda t: t["spec"]["tolerations"], [{"operator": "Exists"}]),
    "affinity": ({"nodeAffinity": {}}, lambda t: t["spec"]["affinity"], {"nodeAffinity": {}}),
    "env": ([{"name": "A", "value": "b"}], lambda t: env(t["spec"]["containers"][0])["A"]["value"], "b"),
    "volumes": ([{"name": "v", "emptyDir": {}}], lambda t: t["spec"]["volumes"][-1], {"name": "v", "emptyDir": {}}),
    "volume_mounts": (
        [{"name": "v", "mountPath": "/v"}],
        lambda t: t["spec"]["containers"][0]["volumeMounts"][-1],
        {"name": "v", "mountPath": "/v"},
    ),
    "resources": (
        {"requests": {"cpu": 3}, "limits": {"memory": "1Gi", "rdma/hca": 1}, "claims": [{"name": "nic"}]},
        lambda t: t["spec"]["containers"][0]["resources"],
        {"requests": {"cpu": 3}, "limits": {"memory": "1Gi", "rdma/hca": 1}, "claims": [{"name": "nic"}]},
    ),
    "runtime_class_name": ("gvisor", lambda t: t["spec"]["runtimeClassName"], "gvisor"),
    "scheduler_name": ("other", lambda t: t["spec"]["schedulerName"], "other"),
    "job_labels": (
        {"kueue.x-k8s.io/queue-name": "q"},
        lambda t: t["job"]["labels"]["kueue.x-k8s.io/queue-name"],
        "q",
    ),
    "job_annotations": ({"note": "x"}, lambda t: t["job"]["annotations"]["note"], "x"),
    "topology_spread_constraints": (
        [{"maxSkew": 1}],
        lambda t: t["spec"]["topologySpreadConstraints"],
        [{"maxSkew": 1}],
    ),
    "resource_claims": ([{"name": "nic"}], lambda t: t["spec"]["resourceClaims"], [{"name": "nic"}]),
    "termination_grace_period_seconds": (77, lambda t: t["spec"]["terminationGracePeriodSeconds"], 77),
    "host_network": (
        True,
        lambda t: (t["spec"]["hostNetwork"], t["spec"]["dnsPolicy"]),
        (True, "ClusterFirstWithHostNet"),
    ),
    "security_context": ({"runAsUser": 7}, lambda t: t["spec"]["securityContext"]["runAsUser"], 7),
}


def test_the_table_knows_every_setting() -> None:
    assert SETTINGS.keys() == PodSettings.model_fields.keys()


@pytest.mark.parametrize("where", ["common", "prepare"])
@pytest.mark.parametrize("name", SETTINGS)
def test_every_pod_setting_reaches_its_pods_and_no_others(name: str, where: str) -> None:
    value, find, expected = SETTINGS[name]
    alias = PodSettings.model_fields[name].alias or name
    pods = {"common": {"image": "trainer:1"}}
    pods[where] = {**pods.get(where, {}), alias: value}
    assert find(parts("prepare", pods=pods)) == expected
    other = parts("publish", pods=pods)
    if where == "common":
        assert find(other) == expected
    else:
        with pytest.raises((KeyError, AssertionError)):
            assert find(other) == expected


def test_pods_mount_their_run_config_as_a_file() -> None:
    made = parts("train")
    (item,) = next(v["downwardAPI"]["items"] for v in made["spec"]["volumes"] if "downwardAPI" in v)
    assert item == {"path": "run.json", "fieldRef": {"fieldPath": f"metadata.annotations['{CONFIG}']"}}
    assert made["metadata"]["annotations"][CONFIG] == "{}"


@pytest.mark.parametrize("stage", STAGES)
def test_defaults_satisfy_the_restricted_pod_security_standard(stage: Any) -> None:
    made = pod(stage)
    assert made["securityContext"]["runAsNonRoot"] is True
    assert made["securityContext"]["runAsUser"] == made["securityContext"]["fsGroup"] == 65532
    assert made["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert made["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert (made["automountServiceAccountToken"], made["enableServiceLinks"]) == (False, False)
    assert {next(k for k in v if k != "name") for v in made["volumes"]} <= {
        "downwardAPI",
        "emptyDir",
        "persistentVolumeClaim",
    }


def test_the_fixed_fields_of_a_gang() -> None:
    made = built("train")["spec"]
    assert (made["completions"], made["parallelism"], made["completionMode"]) == (2, 2, "Indexed")
    assert (made["backoffLimit"], made["podReplacementPolicy"], made["suspend"]) == (0, "Failed", True)
    assert made["template"]["spec"]["restartPolicy"] == "Never"
    rules = [
        (r["action"], r["onExitCodes"]["values"], r["onExitCodes"]["containerName"])
        for r in made["podFailurePolicy"]["rules"]
    ]
    assert rules == [("Ignore", [5], "trainer"), ("FailJob", [3, 4, 6], "trainer")]
    assert made["template"]["spec"]["terminationGracePeriodSeconds"] == 120
    assert "suspend" not in built("prepare")["spec"]
    assert built("publish")["spec"]["completions"] == 1


def test_gpus_and_shared_memory_only_where_they_are_used() -> None:
    assert container("train")["resources"]["limits"] == {"nvidia.com/gpu": 4}
    assert "limits" not in container("prepare")["resources"]
    assert any(m["mountPath"] == "/dev/shm" for m in container("train")["volumeMounts"])
    on_cpu = {"compute": {"device": "cpu", "processesPerNode": 2}}
    assert not any(m["mountPath"] == "/dev/shm" for m in container("train", **on_cpu)["volumeMounts"])
    assert container("train", **on_cpu)["resources"] == {"requests": {"cpu": "500m", "memory": "1024Mi"}}
    amd = {"compute": {"gpusPerNode": 8, "gpuResource": "amd.com/gpu"}}
    assert container("train", **amd)["resources"]["limits"] == {"amd.com/gpu": 8}


def test_a_limit_of_the_user_is_not_below_our_request() -> None:
    small = {"common": {"image": "i", "resources": {"limits": {"memory": "100Mi"}}}}
    assert "memory" not in container("prepare", pods=small)["resources"]["requests"]


def test_the_contract_of_the_environment() -> None:
    name = "bot-abcde-train-1"
    variables = env(container("train"))
    assert variables["FINETUNE_MASTER_ADDR"]["value"] == f"{name}-0.{name}"
    assert pod("train")["subdomain"] == name
    assert "FINETUNE_MASTER_ADDR" not in env(container("prepare"))
    assert container("publish")["command"] == [
        "python", "-m", "finetune_trainer", "publish", "--config", "/etc/finetune/run.json",
    ]  # fmt: skip
    mine = [{"name": "FINETUNE_SCRATCH", "value": "/evil"}, {"name": "HOME", "value": "/home"}]
    changed = env(container("train", pods={"common": {"image": "i", "env": mine}}))
    assert (changed["FINETUNE_SCRATCH"]["value"], changed["HOME"]["value"]) == ("/scratch", "/home")


def test_a_claim_is_mounted_once_and_read_only_where_nothing_is_written() -> None:
    one = {name: {"uri": f"pvc://all/{name}"} for name in ("model", "workspace", "output")}
    made = pod("prepare", **one)
    claims = [v["persistentVolumeClaim"] for v in made["volumes"] if "persistentVolumeClaim" in v]
    assert claims == [{"claimName": "all"}, {"claimName": "data", "readOnly": True}]
    mounts = {m["mountPath"]: m.get("readOnly", False) for m in made["containers"][0]["volumeMounts"]}
    assert mounts["/mnt/claims/all"] is False
    assert mounts["/mnt/claims/data"] is True


def test_priority_is_the_gangs() -> None:
    ranked = {"scheduling": {"priorityClass": "high"}}
    assert pod("train", **ranked)["priorityClassName"] == "high"
    assert "priorityClassName" not in pod("prepare", **ranked)


def test_children_are_owned_labelled_and_named_alike() -> None:
    resolved = spec()
    for stage in STAGES:
        children = [job(META, resolved, "abcde", stage, 3, "{}")]
        if stage == "train":
            children.append(service(META, "abcde", 3, "j-1"))
        for child in children:
            metadata = child["metadata"]
            assert metadata["name"] == f"bot-abcde-{stage}-3"
            (owner,) = metadata["ownerReferences"]
            expected = ("u-1", True) if child["kind"] == "Job" else ("j-1", True)
            assert (owner["uid"], owner["controller"]) == expected
            assert metadata["labels"]["app.kubernetes.io/managed-by"] == "finetune-operator"
            assert metadata["labels"]["finetune.dev/attempt"] == "3"
        assert (
            children[0]["spec"]["template"]["metadata"]["labels"].items() >= children[0]["metadata"]["labels"].items()
        )
    gang = service(META, "abcde", 3, "j-1")["spec"]
    assert (gang["clusterIP"], gang["publishNotReadyAddresses"]) == ("None", True)


def test_no_secret_of_the_pods_reaches_the_run_config() -> None:
    secret = {"common": {"image": "i", "env": [{"name": "PASSWORD", "value": "hunter2"}]}}
    assert "hunter2" not in run_config(META, spec(pods=secret), "abcde", "train", 1)


QUEUE = "kueue.x-k8s.io/queue-name"


def test_a_queue_finds_its_label_on_the_job_and_ours_cannot_be_changed() -> None:
    stolen = {"finetune.dev/job": "other", "app.kubernetes.io/managed-by": "me", QUEUE: "of-the-pods"}
    asked = {"common": {"image": "i", "jobLabels": stolen, "jobAnnotations": {"finetune.dev/settings-digest": "x"}}}
    for_queue = META.model_copy(update={"labels": {QUEUE: "team", "app": "x"}, "annotations": {QUEUE: "a", "b": "c"}})
    plain = job(for_queue, spec(), "abcde", "train", 1, "{}")["metadata"]
    assert (plain["labels"][QUEUE], plain["annotations"][QUEUE]) == ("team", "a")
    assert not {"app", "b"} & (plain["labels"].keys() | plain["annotations"].keys())
    ours = job(for_queue, spec(pods=asked), "abcde", "train", 1, "{}")["metadata"]
    assert ours["labels"] == {**plain["labels"], QUEUE: "of-the-pods"}
    assert ours["annotations"]["finetune.dev/settings-digest"].startswith("v2:")


def test_null_in_a_security_context_removes_the_default_in_every_stage() -> None:
    """As OpenShift needs it; platform defaults are read back from a JSON string, and a job may set a value again."""
    nulls = {"securityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None}}
    frozen = json.dumps(PlatformDefaults.model_validate({"pods": {"image": "i", **nulls}}).wire())
    defaults = PlatformDefaults.model_validate_json(frozen)
    of_user = {"train": {"securityContext": {"fsGroup": 7, "fsGroupChangePolicy": None}}}
    wanted = FineTuneJobSpec.model_validate({**BASE, "pods": of_user})
    for decided in (None, {"training": {"epochs": 2}}):
        resolved = resolve(wanted, defaults, decided)
        for stage in STAGES:
            context = job(META, resolved, "abcde", stage, 1, "{}")["spec"]["template"]["spec"]["securityContext"]
            own = {"fsGroup": 7} if stage == "train" else {"fsGroupChangePolicy": "OnRootMismatch"}
            assert context == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}, **own}


@pytest.mark.parametrize(
    ("stage", "asked", "measured", "expected"),
    [
        ("prepare", None, 500, 30),
        ("train", None, None, 120),
        ("train", None, 12, 120),
        ("train", None, 51, 180),
        ("train", None, 5000, 3600),
        ("train", 5, 500, 5),
    ],
)
def test_grace_follows_the_measured_time_of_a_checkpoint(
    stage: Any, asked: int | None, measured: float | None, expected: int
) -> None:
    assert grace_seconds(PodSettings(termination_grace_period_seconds=asked), stage, measured) == expected


class Newer(FineTuneJobSpec):
    """As a later version has it."""

    novelty: str | None = None
    tries: int = 3


def test_a_new_version_computes_the_same_digest() -> None:
    """What is not set, has its default or was decided does not count, so fields that a version adds do not either."""
    wanted = FineTuneJobSpec.model_validate(BASE)
    explicit = {"retry": {}, "training": {}, "checkpoint": {"keep": 2}, "evaluation": {}, "suspend": False}
    assert digest(wanted, "train") == digest(FineTuneJobSpec.model_validate(BASE | explicit), "train")
    assert digest(Newer.model_validate(BASE), "train") == digest(wanted, "train")
    made = job(META, resolve(wanted, PlatformDefaults(gpu_type="h100"), {}), "abcde", "train", 1, "{}", wanted=wanted)
    recorded = made["metadata"]["annotations"]["finetune.dev/settings-digest"]
    changed = FineTuneJobSpec.model_validate(BASE | {"compute": {"nodes": 3}})
    assert not outdated(recorded, wanted, "train")
    assert outdated(recorded, changed, "train")
    for unknown in (None, "0123456789abcdef", "v9:0123456789abcdef"):
        assert not outdated(unknown, changed, "train")


def test_the_digest_tells_settings_of_a_stage_from_switches() -> None:
    base = spec()
    assert digest(base, "train") == digest(spec(suspend=True, runToken="x", retry={"infra": 9}), "train")
    assert digest(base, "train") != digest(spec(compute={"nodes": 3, "gpusPerNode": 4}), "train")
    only_train = spec(pods={"common": {"image": "trainer:1"}, "train": {"nodeSelector": {"a": "b"}}})
    assert digest(base, "train") != digest(only_train, "train")
    assert digest(base, "publish") == digest(only_train, "publish")


@pytest.mark.parametrize(
    ("own", "requested"),
    [
        ({}, "20480Mi"),
        ({"requests": {"cpu": "1"}}, "20480Mi"),
        ({"requests": {"memory": "1Gi"}}, "1Gi"),
        ({"limits": {"memory": "8Gi"}}, None),
    ],
    ids=["nothing is set", "other requests", "a request is kept", "a limit is the request"],
)
def test_training_requests_the_planned_host_memory(own: dict[str, Any], requested: str | None) -> None:
    wanted = spec(pods={"common": {"image": "i"}, "train": {"resources": own}})
    made = job(META, wanted, "abcde", "train", 1, "{}", host_memory=20 * 2**30)
    assert made["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"].get("memory") == requested
    little = job(META, spec(), "abcde", "train", 1, "{}", host_memory=2**20)
    assert little["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]["memory"] == "16Gi", "a floor"
    assert little["metadata"]["annotations"] == job(META, spec(), "abcde", "train", 1, "{}")["metadata"]["annotations"]
