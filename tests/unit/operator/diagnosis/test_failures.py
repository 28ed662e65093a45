"""The class, code and sentence of a failure, from what Kubernetes writes. The texts are those of the kubelet and the Job controller."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from finetune_api.checks import CHECKS
from finetune_api.failures import FAILURES, KNOWN_CODES, FailureCode
from finetune_api.reasons import WAITING
from finetune_operator.domain.diagnosis.failures import (
    classify_failure,
    evicted_for_own_usage,
    is_lost,
    node_check_due,
    own_usage,
    vanished,
)
from finetune_operator.domain.observed import JobView, NodeView, PodView
from finetune_operator.domain.times import stamp

from tests.unit.operator.diagnosis.conftest import NOW, condition, job_body, pod, pod_body, terminated

ROOT = Path(__file__).resolve().parents[4]
BACKOFF = ("BackoffLimitExceeded", "Job has reached the specified backoff limit")
LOST = "The container could not be located when the pod was terminated"


def report(code: str, message: str, exit_code: int = 1) -> str:
    cause = {"code": code, "message": message}
    return json.dumps({"stage": "train", "outcome": "failed", "exitCode": exit_code, "cause": cause})


def failed(reason: str | None = None, message: str | None = None, *containers: Any, **status: Any) -> PodView:
    return pod(phase="Failed", reason=reason, message=message, containerStatuses=list(containers), **status)


def evicted(message: str, code: int = 137) -> PodView:
    return failed(
        "Evicted",
        message,
        terminated(code),
        conditions=[condition("DisruptionTarget", "True", "TerminationByKubelet", message)],
    )


LOW = "The node was low on resource: {}. Threshold quantity: 100Mi, available: 52Mi. "
OVER = "Container trainer was using {}, request is {}, has larger consumption of {}. "
INIT = {"initContainerStatuses": [terminated(42, message="iptables: permission denied") | {"name": "mesh-init"}]}

FAILED_PODS = {
    # name: (pod, kind, code, words of message and remedy)
    # Evicted for its own usage: it would be evicted again.
    "own memory": (evicted(LOW.format("memory") + OVER.format("60Gi", "4Gi", "memory")), "infra", "HostMemoryExceeded", ["using 60Gi", "spec.pods.train.resources.requests.memory from 4Gi to more than 60Gi"]),
    "own memory, no request": (evicted(LOW.format("memory") + OVER.format("60Gi", "0", "memory")), "infra", "HostMemoryExceeded", ["requests.memory from 0"]),
    "own disk, node pressure": (evicted(LOW.format("ephemeral-storage") + OVER.format("90Gi", "0", "ephemeral-storage")), "infra", "StorageFull", ["requests[ephemeral-storage] from 0 to more than 90Gi"]),
    "pod's disk limit": (evicted("Pod ephemeral local storage usage exceeds the total limit of containers 32Ki. "), "infra", "StorageFull", ["32Ki", "spec.pods.train.resources.limits[ephemeral-storage]"]),
    "container's disk limit": (evicted('Container trainer exceeded its local ephemeral storage limit "1Gi". '), "infra", "StorageFull", ['"1Gi"', "spec.pods.train.resources.limits[ephemeral-storage]"]),
    "emptyDir": (evicted('Usage of EmptyDir volume "cache" exceeds the limit "1Gi". '), "infra", "StorageFull", ["sizeLimit of volume cache in spec.pods.train.volumes"]),
    # Disruptions.
    "node pressure by others": (evicted(LOW.format("memory")), "evicted", "Evicted", ["low on resource"]),
    **{f"rejected: {reason}": (failed(reason, f"Pod was rejected: {text}"), "evicted", "PodRejected", [reason, text]) for reason, text in (
        ("OutOfcpu", "Node didn't have enough resource: cpu, requested: 8000, used: 1, capacity: 4"),
        ("OutOfnvidia.com/gpu", "Node didn't have enough resource: nvidia.com/gpu, requested: 8, used: 1, capacity: 8"),
        ("OutOfephemeral-storage", "Node didn't have enough resource: ephemeral-storage"),
        ("TopologyAffinityError", "Resources cannot be allocated with Topology locality"),
        ("UnexpectedAdmissionError", "Allocate failed due to no healthy devices present"),
        ("NodeAffinity", "Predicate NodeAffinity failed"),
        ("NodePorts", "Predicate NodePorts failed"),
        ("PodOSNotSupported", "the node OS does not match"),
    )},
    "rejected after a kubelet restart": (failed("OutOfpods", "Node didn't have enough resource: pods", terminated(137)), "evicted", "Evicted", ["OutOfpods"]),
    "pod removed": (failed(None, None, terminated(137, "ContainerStatusUnknown", LOST)), "evicted", "Evicted", ["not observed (ContainerStatusUnknown)"]),
    "node rebooted": (failed(None, None, terminated(255, "Unknown")), "evicted", "Evicted", ["not observed (Unknown)", "n1"]),
    "drained": (failed(None, None, terminated(137), conditions=[condition("DisruptionTarget", "True", "EvictionByEvictionAPI", "Eviction API: evicting")]), "evicted", "Evicted", ["EvictionByEvictionAPI"]),
    # Known causes.
    "memory limit": (failed(None, None, terminated(137, "OOMKilled")), "fatal", "OutOfMemory", ["ran out of memory", "spec.pods.train.resources.limits.memory"]),
    "bad input": (failed(None, None, terminated(3)), "fatal", "BadInput", ["exit code 3"]),
    "diverged": (failed(None, None, terminated(6, message=report("Diverged", "loss is NaN", 6))), "fatal", "Diverged", ["loss is NaN", "learningRate"]),
    "known cause while drained": (failed(None, None, terminated(4), conditions=[condition("DisruptionTarget", "True", "PreemptionByScheduler")]), "fatal", "OutOfMemory", []),
    "storage full, with its own remedy": (failed(None, None, terminated(1, message=report("StorageFull", "no space is left"))), "infra", "StorageFull", ["no space is left", "checkpoint.keep"]),
    # Exits without a message.
    "SIGKILL": (failed(None, None, terminated(137)), "infra", "Killed", ["SIGKILL, not for its own memory limit", "kubectl describe node n1"]),
    "SIGSEGV": (failed(None, None, terminated(139, message="step 7\n")), "infra", "Unknown", ["exit code 139 (Error, SIGSEGV)", "its log ends with: step 7"]),
    "architecture": (failed(None, None, terminated(255, message="exec /usr/bin/tini: exec format error\n")), "infra", "WrongArchitecture", ["trainer:1", "node n1", "kubernetes.io/arch"]),
    "StartError": (failed(None, None, terminated(128, "StartError", 'failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: exec: "/bin/x": stat /bin/x: no such file or directory')), "infra", "StartFailed", ["could not be started (StartError)", "spec.pods.common.image"]),
    "secret in the log": (failed(None, None, terminated(1, message='ValueError\n{"password": "pw1"}')), "infra", "Unknown", ["[removed]"]),
    "key over lines of the log": (failed(None, None, terminated(1, message=f"-----BEGIN PRIVATE KEY-----\n{'A' * 64}\npw1{'A' * 61}\n")), "infra", "Unknown", ["[removed]"]),
    # Other containers.
    "init container": (failed(None, None, {"name": "trainer", "state": {"waiting": {"reason": "PodInitializing"}}}, **INIT), "infra", "InitContainerFailed", ["mesh-init", "exit code 42", "iptables: permission denied", "kubectl logs bot-train-1-0-abcde -c mesh-init"]),
    "sidecar": (failed(None, None, terminated(0, "Completed"), terminated(1) | {"name": "proxy"}), "infra", "ContainerFailed", ["Container proxy", "-c proxy"]),
    "pod deadline": (failed("DeadlineExceeded", "Pod was active on the node longer than the specified deadline"), "infra", "DeadlineExceeded", ["longer than the specified deadline", "activeDeadlineSeconds"]),
    # Codes of an image.
    "code of another image": (failed(None, None, terminated(3, message=report("Nope" * 80, "what is wrong", 3))), "fatal", "Unknown", ["what is wrong", "NopeNope"]),
    "code of a check": (failed(None, None, terminated(3, message=report("TooFewExamples", "3 rows", 3))), "fatal", "TooFewExamples", ["3 rows"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FAILED_PODS)
def test_a_failed_pod(failed_job: JobView, name: str) -> None:
    view, kind, code, words = FAILED_PODS[name]
    found = classify_failure(failed_job, [view], "train", NOW)
    text = f"{found.failure.message} / {found.failure.remedy}"
    assert (found.kind, found.failure.code) == (kind, code), text
    assert not [word for word in words if word.lower() not in text.lower()], text
    assert not found.failure.message[0].islower()
    assert found.failure.retriable == (kind != "fatal")
    assert "pw1" not in text
    assert "its log ends with: The container" not in text
    assert len(found.failure.code) <= 64


@pytest.mark.parametrize(
    ("failure", "kind", "code", "words"),
    [
        (("DeadlineExceeded", "Job was active longer than specified deadline"), "infra", "DeadlineExceeded", "deadline"),
        (("PodFailurePolicy", "Container trainer for pod team/bot-train-1-0-x failed with exit code 3 matching FailJob rule at index 1"), "fatal", "BadInput", "exit code 3"),
        (BACKOFF, "evicted", "Evicted", "vanished while it ran (the Job ended with BackoffLimitExceeded"),
    ],
)  # fmt: skip
def test_a_job_that_failed_without_its_pods(failure: tuple[str, str], kind: str, code: str, words: str) -> None:
    found = classify_failure(JobView.of(job_body(1, failure)), [], "train", NOW)
    assert (found.kind, found.failure.code) == (kind, code)
    assert words in found.failure.message


def test_a_rank_that_only_lost_a_peer_is_not_blamed_although_it_ended_first() -> None:
    survivor = failed(None, None, terminated(7, message=report("PeerLost", "another process is gone", 7)))
    killed = failed(None, None, terminated(137))
    pods = [replace(survivor, index=0), replace(killed, index=1)]
    found = classify_failure(JobView.of(job_body(2, BACKOFF)), pods, "train", NOW)
    assert (found.failure.code, found.failure.rank) == ("Killed", 1)


def test_an_eviction_for_own_usage_is_found_after_a_clean_stop(failed_job: JobView) -> None:
    """The trainer saved a checkpoint and ended with 5, so nothing failed; the reason must not be lost."""
    stopped = evicted("Pod ephemeral local storage usage exceeds the total limit of containers 32Ki. ", code=5)
    assert "32Ki" in (own_usage(stopped) or "")
    found = evicted_for_own_usage(failed_job, [stopped], "train")
    assert found is not None
    assert (found.kind, found.failure.code) == ("infra", "StorageFull")
    assert own_usage(evicted(LOW.format("memory"), code=5)) is None


def test_an_eviction_of_before_a_suspension_is_not_blamed(failed_job: JobView) -> None:
    old = replace(evicted(LOW.format("memory") + OVER.format("60Gi", "4Gi", "memory"), code=5), created=NOW - 900)
    found = classify_failure(failed_job, [old, pod(phase="Failed", containerStatuses=[terminated(139)])], "train", NOW)
    assert (found.kind, found.failure.code) == ("infra", "Unknown")


@pytest.mark.parametrize(
    ("exit_code", "deletion", "kind"),
    [
        # deletion: when it was asked for and when its grace period ends, in seconds after the rank's end
        (1, None, "infra"),
        (7, None, "evicted"),
        (143, None, "evicted"),
        (137, None, "infra"),  # nothing asked it to stop: it was killed, and the others were deleted for it
        (137, (2, 32), "infra"),  # so too where it was deleted when it had ended already
        (137, (2, 2), "infra"),  # and after the kubelet has let it go
        (137, (-5, 25), "infra"),  # in its grace period, whose end is not what killed it
        (137, (-30, 0), "evicted"),
        (137, (-30, -30), "evicted"),
    ],
)
def test_what_a_rank_explains_when_the_rest_of_its_gang_is_gone(
    failed_job: JobView, exit_code: int, deletion: tuple[float, float] | None, kind: str
) -> None:
    """The Job controller deletes the ranks of a Job that failed, and nothing is left of those."""
    rank = pod(phase="Failed", containerStatuses=[terminated(exit_code)])
    if deletion is not None:
        asked, due = (NOW - 5 + seconds for seconds in deletion)
        rank = replace(rank, deletion_asked=asked, deletion_due=due)
    job = replace(failed_job, pods=2, failing=NOW - 40, failed=NOW - 40)
    assert classify_failure(job, [rank], "train", NOW).kind == kind


def test_a_killed_rank_that_was_deleted_with_its_gang_is_blamed() -> None:
    """Its peer ended first, for want of it, so that the Job failed within the second in which its deletion was asked."""
    job = JobView.of(job_body(2, BACKOFF))
    assert job.failing is not None
    peer = failed(None, None, terminated(7, message=report("PeerLost", "another process is gone", 7)))
    killed = replace(
        failed(None, None, terminated(137)), index=1, deletion_asked=job.failing, deletion_due=job.failing + 120
    )
    found = classify_failure(job, [peer, killed], "train", NOW)
    assert (found.failure.code, found.failure.rank) == ("Killed", 1)


def running(due: float | None = None, *conditions: dict[str, Any]) -> PodView:
    body = pod_body(
        phase="Running",
        conditions=list(conditions),
        containerStatuses=[{"name": "trainer", "state": {"running": {"startedAt": stamp(NOW - 900)}}}],
    )
    if due is not None:
        body["metadata"] |= {"deletionTimestamp": stamp(NOW + due), "deletionGracePeriodSeconds": 120}
    return PodView.of(body)


def silent(ago: float, **other: str) -> tuple[dict[str, Any], ...]:
    """What the node lifecycle controller leaves of a pod's conditions."""
    return condition("Ready", "False", other.get("reason", ""), ago=ago), condition(
        "ContainersReady", other.get("containers", "True")
    )


NODES = [
    # pod, node, whether it is lost, seconds to the next check
    (running(), None, False, None),
    (running(-301), None, True, None),
    (running(-299), None, False, 1),
    (running(None, *silent(301)), None, True, None),
    (running(None, *silent(290)), None, False, 10),
    (running(None, *silent(301, containers="False")), None, False, None),
    (running(None, *silent(301, reason="ReadinessGatesNotReady")), None, False, None),
    (running(None, *silent(301)), NodeView("n1", True, NOW - 5), False, None),
    (running(), NodeView("n1", False, NOW - 310), True, None),
    (running(), NodeView("n1", False, NOW - 100), False, 200),
    (running(), NodeView("n1", False, None), True, None),
    (running(None, *silent(305)), NodeView("n1", None), True, None),
]


@pytest.mark.parametrize(("view", "node", "lost", "due"), NODES, ids=range(len(NODES)))
def test_a_lost_node(view: PodView, node: NodeView | None, lost: bool, due: float | None) -> None:
    nodes = {} if node is None else {node.name: node}
    assert is_lost(view, NOW, nodes) is lost
    assert node_check_due([view], nodes, NOW) == due
    assert not is_lost(replace(view, phase="Failed"), NOW, nodes)
    job = JobView.of(job_body(1, BACKOFF))
    assert (classify_failure(job, [view], "train", NOW, nodes).failure.code == "NodeLost") is lost


@pytest.mark.parametrize(("status", "ready"), [("True", True), ("False", False), ("Unknown", False)])
def test_a_silent_kubelet_is_not_ready(status: str, ready: bool) -> None:
    body = {"metadata": {"name": "n1"}, "status": {"conditions": [condition("Ready", status, ago=7)]}}
    assert NodeView.of(body) == NodeView("n1", ready, NOW - 7)


def test_a_vanished_job_counts_as_evicted() -> None:
    assert (vanished("train", "Job x").kind, vanished("train", "Job x").failure.code) == ("evicted", "Evicted")


def test_every_code_has_a_meaning_and_a_remedy() -> None:
    assert set(FAILURES) == set(FailureCode)
    for code, failure in FAILURES.items():
        assert failure.meaning.endswith(".")
        assert failure.remedy or failure.kind == "evicted", code
        assert "{" not in failure.advice()
    assert all(waiting.cause and waiting.remedy for waiting in WAITING.values())
    assert not {code for code in KNOWN_CODES if not code.isalnum() or not code[0].isupper() or len(code) > 64}


def test_the_trainer_gives_known_codes_only() -> None:
    given = set()
    for path in (ROOT / "trainer_image").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "code" and isinstance(node.value, ast.Constant):
                given.add(node.value.value)
    assert len(given) > 15
    assert {code for code in given if isinstance(code, str)} <= {*FailureCode, *CHECKS}


# Through the plan.


def test_a_pod_evicted_for_its_own_usage_uses_retries_although_it_saved(make_world: Any, words: Any) -> None:
    world = make_world(retry={"infra": 1})
    world.through("prepare")
    for attempt in (1, 2):
        assert world.job("train").attempt == attempt
        world.run("train")
        world.settle()
        text = "Pod ephemeral local storage usage exceeds the total limit of containers 32Ki."
        world.end("train", 5, text=words("train", "stopped", 5, step=9), reason="Error")
        name = world.job("train").name
        world.pods[name] = {n: replace(p, reason="Evicted", text=text) for n, p in world.pods[name].items()}
        drawn = world.settle()
        world.now += drawn.requeue_after or 0
        world.settle()
    failure = world.status["failure"]
    assert (world.status["phase"], failure["code"]) == ("Failed", "StorageFull")
    assert "spec.pods.train.resources.limits[ephemeral-storage]" in failure["remedy"]


def test_a_pod_whose_node_is_silent_is_replaced_without_being_deleted(make_world: Any) -> None:
    """It tolerates the taint of its node, so that nothing ever deletes it."""
    world = make_world(retry={"infra": 0})
    world.through("prepare")
    world.run("train")
    world.settle()
    world.pod("train", not_ready_since=world.now)
    drawn = world.settle()
    assert 0 < drawn.requeue_after <= 301
    world.now += 301
    drawn = world.settle()
    assert world.book[-1] == ("train", 1, "Evicted")
    assert world.status["attempts"][-1]["reason"] == "NodeLost"
