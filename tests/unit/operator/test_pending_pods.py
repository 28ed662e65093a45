"""Why pods do not run, in words that say what to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.domain.observed import Read
from finetune_operator.domain.reasons import Reason

POD_PROBLEMS = [
    ({"waiting": "ErrImagePull", "waiting_text": "no such host", "image": "a/b:1"}, "ImagePullFailed", ["a/b:1", "no such host"]),
    ({"waiting": "InvalidImageName", "waiting_text": 'InvalidImageName: could not parse "UPPER"'}, "ImagePullFailed", ["UPPER"]),
    ({"waiting": "ErrImageNeverPull", "waiting_text": "policy is Never"}, "ImagePullFailed", ["policy is Never"]),
    ({"waiting": "CreateContainerConfigError", "waiting_text": 'secret "hub" not found'}, "MissingSecret", ["Secret hub", "kubectl create secret"]),
    ({"waiting": "CreateContainerConfigError", "waiting_text": 'configmap "c" not found'}, "MissingConfigMap", ["ConfigMap c"]),
    ({"waiting": "CreateContainerConfigError", "waiting_text": "couldn't find key HF_TOKEN in Secret team/hub"}, "MissingSecret", ["hub has no key HF_TOKEN"]),
    ({"waiting": "CreateContainerConfigError", "waiting_text": "container has runAsNonRoot and image will run as root"}, "ContainerNotStarted", ["runAsNonRoot"]),
    ({"waiting": "RunContainerError", "waiting_text": 'exec: "python": executable file not found'}, "ContainerNotStarted", ["python"]),
    ({"unschedulable": 'persistentvolumeclaim "data" not found'}, "MissingClaim", ["PersistentVolumeClaim data", "Create it"]),
    ({"unschedulable": "pod has unbound immediate PersistentVolumeClaims", "claims": ("data",)}, "UnboundClaim", ["data", "kubectl describe pvc"]),
    ({"unschedulable": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."}, "Unschedulable", ["3 Insufficient nvidia.com/gpu", "Free or add nodes"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("state", "reason", "words"), POD_PROBLEMS, ids=[f"{r}-{n}" for n, (_, r, _) in enumerate(POD_PROBLEMS)]
)
def test_what_a_pod_says(make_world: Any, state: dict[str, Any], reason: str, words: list[str]) -> None:
    world = make_world()
    world.settle()
    world.pod("prepare", node=None if "unschedulable" in state else "n1", unschedulable_since=world.now, **state)
    world.now += 5
    world.settle()
    assert world.status["reason"] == reason
    assert all(word in world.status["message"] for word in words), world.status["message"]
    stalled = None if reason == "Unschedulable" else "True"
    assert (world.condition("Running"), world.condition("Stalled")) == ("False", stalled)
    assert [(n.type, n.reason) for n in world.events][-1] == ("Warning", reason)
    told = len(world.events)
    world.settle()
    assert len(world.events) == told, "told once"
    world.pod("prepare", phase="Running", waiting=None, unschedulable=None, node="n1", running_since=world.now)
    world.settle()
    assert world.status["reason"] == "Preparing"


def test_a_pod_may_be_without_a_node_for_a_moment(make_world: Any) -> None:
    world = make_world()
    world.settle()
    world.pod("prepare", unschedulable="0/1 nodes", unschedulable_since=world.now)
    drawn = world.settle()
    assert world.status["reason"] == "Starting"
    assert 0 < drawn.requeue_after <= 3


JOB_WARNINGS = [
    (('pods "x" is forbidden: exceeded quota: q, requested: pods=1',), "QuotaExceeded", "kubectl describe quota"),
    (('pods "x" is forbidden: failed quota: q: must specify cpu for: trainer',), "QuotaExceeded", "must specify cpu"),
    (('pods "x" is forbidden: violates PodSecurity "restricted:latest": hostPath volumes',), "PodSecurity", "hostPath"),
    (('admission webhook "w" denied the request: no',), "PodsNotCreated", "no"),
    (None, "PodsNotCreated", "kubectl describe job"),
    ((), "Starting", "Waiting"),
]


@pytest.mark.parametrize(("warnings", "reason", "words"), JOB_WARNINGS)
def test_a_job_without_pods_is_asked_for_its_warnings(
    make_world: Any, warnings: tuple[str, ...] | None, reason: str, words: str
) -> None:
    world = make_world()
    drawn = world.settle()
    assert 0 < drawn.requeue_after <= 5
    assert not world.reads
    world.now += 5
    world.step()
    name = world.job("prepare").name
    assert world.reads == [Read("warnings", name)]
    world.warnings[name] = warnings
    world.settle()
    assert world.status["reason"] == reason
    assert words in world.status["message"]


@pytest.mark.parametrize(
    ("warning", "reason"),
    [
        ('MountVolume.SetUp failed for volume "x" : secret "s" not found', "MissingSecret"),
        ('MountVolume.SetUp failed for volume "certificates-0" : configmap "company" not found', "MissingConfigMap"),
        ('MountVolume.SetUp failed for volume "x" : timeout', "MountFailed"),
        ("Multi-Attach error for volume pvc-1", "MountFailed"),
        ("Failed to create pod sandbox: no network", "ContainerNotStarted"),
    ],
)
def test_a_slow_pod_is_asked_for_its_warnings(make_world: Any, warning: str, reason: str) -> None:
    world = make_world()
    world.settle()
    pod = world.pod("prepare", node="n1", waiting="ContainerCreating")
    world.settle()
    assert not world.reads
    world.now += 13
    world.warnings[pod.name] = (warning,)
    world.settle()
    assert world.status["reason"] == reason


def test_a_clock_that_differs_makes_nobody_wait(make_world: Any) -> None:
    world = make_world()
    world.settle()
    job = world.job("prepare")
    world.jobs[job.name] = replace(job, created=world.now + 3600)
    world.warnings[job.name] = ("exceeded quota: q",)
    world.settle()
    assert world.status["reason"] == Reason.QUOTA_EXCEEDED


def test_one_rank_that_cannot_start_is_told_while_the_other_runs(make_world: Any) -> None:
    world = make_world(compute={"device": "cpu", "nodes": 2})
    world.share("scratch")
    world.through("prepare")
    world.run("train", 1)
    world.pod("train", 1, unschedulable="0/1 nodes are available", unschedulable_since=world.now - 9)
    world.settle()
    assert (world.status["phase"], world.status["reason"]) == ("Queued", "Unschedulable")
    assert (world.condition("Ready"), world.condition("Reconciling")) == ("True", None)
