"""Why pods do not run: each cause has its own reason and remedy, and what stops nothing is no cause.

The texts are those of the scheduler, the kubelet and the API server.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.domain.diagnosis.pending_pods import Diagnosis, diagnose, same_problem
from finetune_operator.domain.observed import EventView, JobView, ObservedState, PodView, Read
from finetune_operator.domain.times import micro_stamp, stamp

from tests.unit.operator.diagnosis.conftest import NOW, condition, job_body, pod_body, terminated, waiting

JOB = replace(JobView.of(job_body()), created=NOW - 60, released=0.0)


def diagnosed(
    pod: PodView | None = None, events: tuple[EventView, ...] | None = (), now: float = NOW, **job: Any
) -> Diagnosis:
    pods = () if pod is None else (pod,)
    name = JOB.name if pod is None else pod.name
    seen = ObservedState(job=None, pods={JOB.name: pods}, warnings={name: events})  # type: ignore[arg-type]
    return diagnose(seen, replace(JOB, **job), pods, pod is None, now)


def event(reason: str, text: str, ago: float = 5, *, warning: bool = True) -> EventView:
    return EventView(warning, reason, text, NOW - ago)


def unplaced(message: str, reason: str = "Unschedulable", **spec: Any) -> PodView:
    return PodView.of(
        pod_body(
            spec={"nodeName": None} | spec,
            phase="Pending",
            conditions=[condition("PodScheduled", "False", reason, message)],
        )
    )


def claims(*names: str) -> dict[str, Any]:
    return {"volumes": [{"name": n, "persistentVolumeClaim": {"claimName": n}} for n in names]}


def placed(*statuses: dict[str, Any], spec: dict[str, Any] | None = None, **status: Any) -> PodView:
    conditions = [condition("PodScheduled", "True", ago=50)]
    return PodView.of(
        pod_body(
            spec=spec, phase="Pending", **({"conditions": conditions, "containerStatuses": list(statuses)} | status)
        )
    )


SECRETS = {"imagePullSecrets": [{"name": "regcred"}]}
DENIED = 'failed to resolve reference "r.example.org/a:1": pull access denied, repository does not exist or may require authorization'
PLATFORM = 'failed to pull and unpack image "r.example.org/a:1": no match for platform in manifest: not found'
MESH = {"initContainerStatuses": [waiting("CrashLoopBackOff", "back-off 10s restarting failed container=mesh", "mesh")]}
VOLUME = (
    "0/3 nodes are available: 3 {}. preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
)

PODS = {
    # Its containers.
    "image": (placed(waiting("ErrImagePull", "no such host")), "ImagePullFailed", ["trainer:1", "no such host", "imagePullSecrets"]),
    "pull secret": (placed(waiting("ImagePullBackOff", DENIED), spec=SECRETS), "ImagePullFailed", ["Secret regcred exists"]),
    "architecture": (placed(waiting("ErrImagePull", PLATFORM)), "WrongArchitecture", ["node n1", "kubernetes.io/arch"]),
    "image of an init container": (placed(waiting("PodInitializing"), initContainerStatuses=[waiting("ErrImagePull", "not found", "mesh")]), "ImagePullFailed", ["container mesh", "webhook"]),
    "sidecar that crashes": (placed(waiting("PodInitializing"), **MESH), "ContainerNotStarted", ["mesh", "CrashLoopBackOff", "kubectl logs bot-train-1-0-abcde -c mesh"]),
    "invalid name": (placed(waiting("InvalidImageName", 'InvalidImageName: could not parse "UPPER"')), "ImagePullFailed", ["UPPER"]),
    "policy Never": (placed(waiting("ErrImageNeverPull", "policy is Never")), "ImagePullFailed", ["policy is Never"]),
    "secret": (placed(waiting("CreateContainerConfigError", 'secret "hub" not found')), "MissingSecret", ["Secret hub", "kubectl create secret"]),
    "config map": (placed(waiting("CreateContainerConfigError", 'configmap "c" not found')), "MissingConfigMap", ["ConfigMap c"]),
    "key": (placed(waiting("CreateContainerConfigError", "couldn't find key HF_TOKEN in Secret team/hub")), "MissingSecret", ["hub has no key HF_TOKEN"]),
    "user": (placed(waiting("CreateContainerConfigError", "container has runAsNonRoot and image will run as root")), "ContainerNotStarted", ["runAsNonRoot"]),
    "command": (placed(waiting("RunContainerError", 'exec: "python": executable file not found')), "ContainerNotStarted", ["python"]),
    # Its placement.
    "resources": (unplaced("0/3 nodes are available: 3 Insufficient nvidia.com/gpu."), "Unschedulable", ["3 Insufficient nvidia.com/gpu", "Free or add nodes"]),
    "cordoned": (unplaced("0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable."), "Unschedulable", ["kubectl uncordon", "Free or add nodes"]),
    "claim": (unplaced('0/1 nodes are available: persistentvolumeclaim "data" not found.'), "MissingClaim", ["PersistentVolumeClaim data", "Create it"]),
    "unbound": (unplaced("pod has unbound immediate PersistentVolumeClaims", **claims("data")), "UnboundClaim", ["data", "kubectl describe pvc"]),
    "claim being deleted": (unplaced('0/1 nodes are available: persistentvolumeclaim "data" is being deleted.'), "VolumeUnavailable", ["data is being deleted", "Create the claim again"]),
    "volume elsewhere": (unplaced(VOLUME.format("node(s) didn't match PersistentVolume's node affinity"), **claims("data")), "VolumeUnavailable", ["(data)", "zone"]),
    "volume of another zone": (unplaced(VOLUME.format("node(s) had no available volume zone")), "VolumeUnavailable", ["zone"]),
    "used by one pod": (unplaced(VOLUME.format("node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode")), "VolumeUnavailable", ["End the other pod"]),
    "volume gone": (unplaced('0/1 nodes are available: persistentvolumeclaim "data" bound to non-existent persistentvolume "pv-1".'), "UnboundClaim", ["does not exist"]),
    "gate": (unplaced("Scheduling is blocked due to non-empty scheduling gates", "SchedulingGated", schedulingGates=[{"name": "queue.example.com/admission"}]), "SchedulingGated", ["queue.example.com/admission"]),
    "no scheduler": (PodView.of(pod_body(spec={"nodeName": None, "schedulerName": "volcano"}, phase="Pending")), "NoScheduler", ["its schedulerName is volcano", "spec.pods.*.schedulerName"]),
    "scheduler down": (PodView.of(pod_body(spec={"nodeName": None}, phase="Pending")), "NoScheduler", ["kube-scheduler"]),
}  # fmt: skip


@pytest.mark.parametrize("name", PODS)
def test_a_pod_that_cannot_start(name: str) -> None:
    pod, reason, words = PODS[name]
    problem = diagnosed(pod).problem
    assert problem is not None
    assert problem.reason == reason
    assert not [word for word in words if word not in problem.text], problem.text


def test_a_scheduler_gets_its_time() -> None:
    pod, _, _ = PODS["no scheduler"]
    found = diagnosed(replace(pod, created=NOW - 50))
    assert (found.problem, found.requeue_after) == (None, 10.5)
    found = diagnosed(replace(PODS["resources"][0], unschedulable_since=NOW - 1))
    assert (found.problem, found.requeue_after) == (None, 3)


FORBIDDEN = 'Error creating: pods "bot-prepare-1-x7k2p" is forbidden: '
REFUSALS = {
    "quota": (FORBIDDEN + "exceeded quota: q, requested: pods=1, used: pods=10, limited: pods=10", "QuotaExceeded", ["kubectl describe quota"]),
    "quota on limits": (FORBIDDEN + "failed quota: limits: must specify limits.cpu for: trainer; limits.memory for: trainer", "ResourcesNotSet", ["spec.pods.common.resources.limits.cpu, spec.pods.common.resources.limits.memory", "LimitRange"]),
    "quota on requests": (FORBIDDEN + "failed quota: q: must specify cpu for: trainer", "ResourcesNotSet", ["spec.pods.common.resources.requests.cpu"]),
    "limit range": (FORBIDDEN + "[minimum memory usage per Container is 6Mi, but request is 1Mi, maximum cpu usage per Container is 800m, but limit is 2]", "LimitRangeViolated", ["maximum cpu", "kubectl describe limitrange"]),
    "ratio": (FORBIDDEN + "memory max limit to request ratio per Container is 2, but provided ratio is 4.000000", "LimitRangeViolated", ["ratio"]),
    "pod security": (FORBIDDEN + 'violates PodSecurity "restricted:latest": hostPath volumes', "PodSecurity", ["hostPath"]),
    "priority class": (FORBIDDEN + "no PriorityClass with name nope was found", "MissingPriorityClass", ["nope", "spec.scheduling.priorityClass"]),
    "runtime class": (FORBIDDEN + 'pod rejected: RuntimeClass "nope" not found', "MissingRuntimeClass", ["nope", "runtimeClassName"]),
    "service account": (FORBIDDEN + 'error looking up service account team/nope: serviceaccount "nope" not found', "MissingServiceAccount", ["nope", "serviceAccountName"]),
    "webhook": ('Error creating: admission webhook "w.example.org" denied the request: no', "PodsNotCreated", ["w.example.org", "policy or webhook"]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_a_job_whose_pods_are_refused(name: str) -> None:
    text, reason, words = REFUSALS[name]
    problem = diagnosed(events=(event("FailedCreate", text),)).problem
    assert problem is not None
    assert problem.reason == reason
    assert not [word for word in words if word not in problem.text], problem.text


def test_a_job_without_pods() -> None:
    assert diagnosed(created=NOW - 1).requeue_after == 3.5
    seen = ObservedState(job=None)  # type: ignore[arg-type]
    assert diagnose(seen, JOB, (), True, NOW).reads == {Read("warnings", JOB.name)}
    assert diagnosed(events=()).problem is None
    # A Service of the same name.
    foreign = event("FailedToUpdateEndpoint", "Failed to update endpoint team/bot-train-1")
    assert diagnosed(events=(foreign,)).problem is None
    silent = diagnosed(events=(), created=NOW - 130).problem
    assert silent is not None
    assert "no event gives a cause" in silent.message
    unread = diagnosed(events=None).problem
    assert unread is not None
    assert "kubectl describe job" in unread.text
    future = diagnosed(events=(event("FailedCreate", FORBIDDEN + "exceeded quota: q"),), created=NOW + 3600).problem
    assert future is not None, "a clock that differs makes nobody wait"


def test_a_refusal_of_before_a_pod_was_created_is_over() -> None:
    pod = replace(placed(waiting()), created=NOW - 20)
    seen = ObservedState(
        job=None,
        pods={JOB.name: (pod,)},
        warnings={JOB.name: (event("FailedCreate", FORBIDDEN + "exceeded quota", 30),)},
    )  # type: ignore[arg-type]
    assert diagnose(seen, replace(JOB, pods=2), (), True, NOW).problem is None


DNS = event("DNSConfigForming", "Nameserver limits were exceeded, some nameservers have been omitted", 2)
ATTACH = event(
    "FailedAttachVolume", 'Multi-Attach error for volume "pvc-1" Volume is already exclusively attached to one node', 40
)
PULLING = event("Pulling", 'Pulling image "trainer:1"', 30, warning=False)
MOUNTED = [condition("PodScheduled", "True", ago=50), condition("PodReadyToStartContainers", "True", ago=31)]
SLOW = {
    # name: (events, conditions, reason, words)
    "missing secret": ((event("FailedMount", 'MountVolume.SetUp failed for volume "x" : secret "s" not found'),), None, "MissingSecret", "Secret s"),
    "missing config map": ((event("FailedMount", 'MountVolume.SetUp failed for volume "certificates-0" : configmap "company" not found'),), None, "MissingConfigMap", "company"),
    "mount": ((event("FailedMount", 'MountVolume.SetUp failed for volume "x" : timeout'),), None, "MountFailed", "driver"),
    "attached elsewhere": ((ATTACH,), None, "MountFailed", "End the other pod"),
    "sandbox": ((event("FailedCreatePodSandBox", "Failed to create pod sandbox: no network"),), None, "ContainerNotStarted", "network plugin"),
    "DNS": ((DNS,), None, None, ""),
    "DNS after a mount": ((DNS, ATTACH), None, "MountFailed", "Multi-Attach"),
    "attached in the end": ((DNS, ATTACH), MOUNTED, None, ""),
    "pulling": ((DNS, PULLING, ATTACH), None, None, "pulling image trainer:1"),
}  # fmt: skip


@pytest.mark.parametrize("name", SLOW)
def test_a_pod_that_starts_slowly(name: str) -> None:
    events, conditions, reason, words = SLOW[name]
    pod = placed(waiting(), **({} if conditions is None else {"conditions": conditions}))
    found = diagnosed(pod, events)
    assert (found.problem and found.problem.reason) == reason
    assert words in ((found.problem.text if found.problem else found.note) or "")


def test_a_pod_that_does_not_start_for_no_known_reason() -> None:
    pod = placed(waiting())
    assert diagnosed(pod, (DNS,), NOW + 60).problem is None
    found = diagnosed(pod, (DNS,), NOW + 120)
    assert found.problem is not None
    assert found.problem.reason == "PodNotStarted"
    assert "kubectl describe pod bot-train-1-0-abcde" in found.problem.text
    # The longer nothing happens, the fewer reads.
    assert (found.requeue_after, diagnosed(pod, (), NOW + 86_400).requeue_after) == (45, 300)
    # An image that is pulled for an hour, and an init container that runs, are no problem.
    pulling = diagnosed(pod, (PULLING,), NOW + 3600)
    assert (pulling.problem, pulling.note) == (
        None,
        f"Node n1 is pulling image trainer:1 of pod {pod.name} since {stamp(NOW - 30)}",
    )
    init = {"initContainerStatuses": [{"name": "fetch", "state": {"running": {}}}]}
    fetching = diagnosed(placed(waiting("PodInitializing"), **init), (), NOW + 3600)
    assert (fetching.problem, fetching.note) == (None, f"Init container fetch of pod {pod.name} is running")


def test_a_slow_pod_is_asked_for_its_events_after_a_moment() -> None:
    pod = placed(waiting())
    assert diagnosed(replace(pod, created=NOW - 2)).requeue_after == 10.5
    seen = ObservedState(job=None)  # type: ignore[arg-type]
    assert diagnose(seen, JOB, (pod,), False, NOW).reads == {Read("warnings", pod.name)}


def test_containers_next_to_the_trainer_are_kept_once_it_has_ended() -> None:
    proxy = {"name": "proxy", "state": {"running": {}}}
    pod = PodView.of(pod_body(phase="Running", containerStatuses=[terminated(0, "Completed"), proxy]))
    assert pod.still_running == ("proxy",)
    # While the trainer runs, the states of the others change nothing that is looked at.
    trainer = {"name": "trainer", "state": {"running": {"startedAt": stamp(NOW)}}}
    with_proxy = PodView.of(pod_body(phase="Running", containerStatuses=[trainer, proxy]))
    assert with_proxy == PodView.of(pod_body(phase="Running", containerStatuses=[trainer]))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (
            "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint {x: y}. preemption: 0/3 nodes are available: 3 Preemption is not helpful.",
            "0/5 nodes are available: 2 Insufficient cpu, 3 node(s) had untolerated taint {x: y}. preemption: 0/5 nodes are available: 5 Preemption is not helpful.",
            True,
        ),
        (
            "0/3 nodes: 1 Insufficient cpu, 2 Insufficient memory",
            "0/3 nodes: 1 Insufficient memory, 2 Insufficient cpu",
            True,
        ),
        (REFUSALS["quota"][0], REFUSALS["quota"][0].replace("x7k2p", "99abc").replace("=10", "=11"), True),
        ("back-off 10s restarting failed container=a", "back-off 5m0s restarting failed container=a", True),
        ("0/3 nodes: 3 Insufficient cpu", "0/3 nodes: 3 Insufficient memory", False),
        ("0/3 nodes: 3 Insufficient nvidia.com/mig-1g.5gb", "0/3 nodes: 3 Insufficient nvidia.com/mig-2g.10gb", False),
        ("Secret a1 does not exist", "Secret a2 does not exist", False),
    ],
)
def test_messages_that_differ_in_numbers_only(one: str, other: str, same: bool) -> None:
    assert same_problem(one, other) is same


def test_an_event_is_read_in_either_form() -> None:
    core = {
        "type": "Warning",
        "reason": "Failed",
        "note": "password=x",
        "deprecatedLastTimestamp": stamp(NOW),
        "eventTime": None,
        "metadata": {},
    }
    new = {
        "type": "Normal",
        "reason": "Pulling",
        "eventTime": micro_stamp(NOW - 9),
        "series": {"lastObservedTime": micro_stamp(NOW + 0.5)},
        "metadata": {},
    }
    assert EventView.of(core) == EventView(True, "Failed", "password=[removed]", NOW)
    assert EventView.of(new) == EventView(False, "Pulling", "", NOW + 0.5)


# Through the plan.


def test_a_problem_is_shown_once_and_passes(make_world: Any) -> None:
    world = make_world()
    world.settle()
    world.pod("prepare", node="n1", waiting="ErrImagePull", waiting_text="no such host", image="a/b:1")
    world.settle()
    assert world.status["reason"] == "ImagePullFailed"
    assert (world.condition("Running"), world.condition("Stalled")) == ("False", "True")
    assert [(n.type, n.reason) for n in world.events][-1] == ("Warning", "ImagePullFailed")
    shown = len(world.events)
    world.settle()
    assert len(world.events) == shown
    world.pod("prepare", phase="Running", waiting=None, running_since=world.now)
    world.settle()
    assert world.status["reason"] == "Preparing"


def test_a_rank_that_cannot_start_is_shown_while_the_other_runs(make_world: Any) -> None:
    world = make_world(compute={"device": "cpu", "nodes": 2})
    world.share()
    world.through("prepare")
    world.run("train", 1)
    world.pod("train", 1, unschedulable="0/1 nodes are available", unschedulable_since=world.now - 9)
    world.settle()
    assert (world.status["phase"], world.status["reason"]) == ("Queued", "Unschedulable")
    assert (world.condition("Ready"), world.condition("Reconciling")) == ("True", None)


def test_the_scheduler_counting_anew_is_no_news(make_world: Any) -> None:
    world = make_world()
    world.settle()
    shown = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    world.pod("prepare", unschedulable=shown, unschedulable_since=world.now - 9)
    world.settle()
    events, message = len(world.events), world.status["message"]
    world.pod("prepare", unschedulable=shown.replace("3", "5"))
    world.settle()
    assert (len(world.events), world.status["message"]) == (events, message)
    world.pod("prepare", unschedulable="0/3 nodes are available: 3 Insufficient memory.")
    world.settle()
    assert len(world.events) == events + 1


def test_numbers_of_other_messages_are_news(make_world: Any) -> None:
    world = make_world(compute={"device": "cpu", "nodes": 2})
    world.share()
    world.through("prepare")
    world.edit(suspend=True)
    world.run("train", 2)
    world.settle()
    texts = []
    for index in range(2):
        world.end("train", 5, index)
    world.set("train", suspended=True, held=True)
    for step in (5, 9):
        world.body["status"]["lastCheckpoint"] = {"step": step}
        world.settle()
        texts.append(world.status["message"])
    assert ["step 5" in texts[0], "step 9" in texts[1]] == [True, True], texts
