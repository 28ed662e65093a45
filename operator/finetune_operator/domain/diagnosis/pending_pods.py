"""Why the pods of a stage do not run yet, with what to do.

None of these causes fails a job: it continues by itself once the cause is gone. They are looked for in this order: the pod's
own containers, its placement, the events of its Job (no pod was created) or of the pod (it has a node and does not start).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from finetune_api.reasons import Reason
from finetune_api.secret_patterns import redact

from finetune_operator.domain.observed import EventView, JobView, ObservedState, PodView, Read
from finetune_operator.domain.times import stamp

NO_PODS_S = 4.0
"""The events of a Job without pods are read after this time."""
SLOW_START_S = 12.0
"""So are those of a pod that has a node and does not start."""
UNPLACED_S = 3.0
"""A pod may be without a node for a moment before it is reported."""
NO_SCHEDULER_S = 60.0
"""A scheduler considers a pod within this time, if there is one."""
NO_CAUSE_S = 120.0
"""After this time a pod that does not start is reported even if no cause is found."""
RECHECK_S, SLOWEST_RECHECK_S = 15.0, 300.0

# Events of the kubelet and of volume controllers about something that keeps a pod from starting. Other warnings
# (DNSConfigForming, policies in audit mode) stop nothing. A Multi-Attach is reported once, so these need not recur.
_STOPS_A_START = {
    "FailedMount",
    "FailedAttachVolume",
    "FailedMapVolume",
    "FailedCreatePodSandBox",
    "FailedCreatePodContainer",
    "FailedPrepareDynamicResources",
    "FailedSync",
    "NetworkNotReady",
    "InspectFailed",
    "Failed",
}
_PROGRESS = {"Scheduled", "SuccessfulAttachVolume", "SuccessfulMountVolume", "AddedInterface", "Pulling", "Pulled", "Created", "Started"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong and what to do, each one sentence."""

    reason: Reason
    message: str
    remedy: str

    @property
    def text(self) -> str:
        return f"{self.message}. {self.remedy}" if self.remedy else self.message


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """`note`: what the pods are doing, where nothing is wrong. `reads`: what has to be read to know more. `requeue_after`:
    seconds until there may be more to know."""

    problem: Problem | None = None
    reads: frozenset[Read] = frozenset()
    requeue_after: float | None = None
    note: str | None = None


def diagnose(seen: ObservedState, job: JobView, pods: Sequence[PodView], missing: bool, now: float) -> Diagnosis:
    """Why not every pod of `job` runs. `pods` are those that should run now; `missing`: some were not even created."""
    pods = sorted(pods, key=lambda pod: pod.index)
    for pod in pods:
        for check in _OF_A_POD:
            problem = check(pod)
            if problem is not None:
                return Diagnosis(problem)  # a change of the pod ends it
    unplaced = [pod for pod in pods if pod.unschedulable is not None]
    if unplaced:
        since = min(pod.unschedulable_since or pod.created for pod in unplaced)
        if 0 <= now - since < UNPLACED_S:
            return Diagnosis(requeue_after=UNPLACED_S)
        return Diagnosis(_unschedulable(unplaced[0]))
    ignored = [pod for pod in pods if pod.node is None and not pod.considered and not pod.over]
    if ignored:
        age = now - min(pod.created for pod in ignored)
        if 0 <= age < NO_SCHEDULER_S:
            return Diagnosis(requeue_after=NO_SCHEDULER_S - age + 0.5)
        return Diagnosis(_no_scheduler(ignored[0]))
    if missing:
        return _no_pods(seen, job, now)
    slow = [pod for pod in pods if pod.node and not pod.running and not pod.over and pod.ended is None]
    if slow:
        return _slow(seen, min(slow, key=lambda pod: pod.created), now)
    return Diagnosis()


_PODS_IN_ERRORS = re.compile(r'(pods? )"[^"]*"|([Pp]od[ =])\S*-[a-z0-9]{5}(?![\w-])\S*')
_NUMBER = re.compile(r"(?<![\w/.-])\d[\w.]*(?:/\d+)?")


def steady_text(message: str) -> str:
    """A key that is equal for messages that differ only in numbers, names of generated pods and the order of their reasons:
    the scheduler counts nodes anew each time, and each pod that a Job cannot create has another name."""
    text = _NUMBER.sub("#", _PODS_IN_ERRORS.sub(r"\1\2#", message))
    return "; ".join(sorted({part.strip(" #/") for part in re.split(r"[,;:]\s|\.\s|\.$", text)} - {""}))


def same_problem(one: str, other: str) -> bool:
    """Whether the messages name the same problem, so that the second needs no write and no event."""
    return steady_text(one) == steady_text(other)


COUNTED = (Reason.UNSCHEDULABLE, Reason.VOLUME_UNAVAILABLE, Reason.QUOTA_EXCEEDED)
"""Reasons whose messages have numbers that other jobs change all the time."""


# The containers of a pod.

_PULL_FAILURES = (
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
    "RegistryUnavailable",
    "SignatureValidationFailed",
)
_ACCESS_REFUSED = re.compile(
    r"unauthorized|authorization|authentication|access denied|forbidden|no basic auth|\b40[13]\b", re.I
)


def _image(pod: PodView) -> Problem | None:
    return _pull_failed(pod, pod.waiting, pod.waiting_text, pod.image, None) or next(
        (
            problem
            for other in pod.others
            if other.state == "waiting"
            and (problem := _pull_failed(pod, other.reason, other.text, other.image, other.name)) is not None
        ),
        None,
    )


def _pull_failed(
    pod: PodView, reason: str | None, text: str | None, image: str | None, container: str | None
) -> Problem | None:
    if reason not in _PULL_FAILURES:
        return None
    # The kubelet alternates between two reasons and wraps one text in the other: keep the part that stays.
    detail = re.sub(r'^Back-off pulling image "[^"]*":? ?', "", text or "")
    detail = re.sub(r"^(ErrImagePull|InvalidImageName|RegistryUnavailable):? ?", "", detail)
    of = f" of container {container}" if container else ""
    what = f"The image{f' {image}' if image else ''}{of}"
    if "no match for platform" in detail or "no matching manifest for" in detail:
        return Problem(
            Reason.WRONG_ARCHITECTURE,
            f"{what} does not exist for the CPU architecture of node {pod.node}: {_clipped(detail)}",
            "Use an image for it, or set spec.pods.common.nodeSelector[kubernetes.io/arch]",
        )
    if container:
        remedy = "Correct the webhook or policy that adds this container, or exclude these pods from it"
    elif _ACCESS_REFUSED.search(detail) and pod.pull_secrets:
        names = ", ".join(pod.pull_secrets)
        remedy = f"Check that Secret {names} exists in this namespace and may read the image (kubectl get secret), or correct spec.pods.common.image"
    else:
        remedy = "Correct spec.pods.common.image, or name pull secrets in spec.pods.common.imagePullSecrets"
    shown = f": {_clipped(detail)}" if detail else ""
    return Problem(Reason.IMAGE_PULL_FAILED, f"{what} cannot be pulled on node {pod.node}{shown}", remedy)


def _configuration(pod: PodView) -> Problem | None:
    if pod.waiting != "CreateContainerConfigError":
        return None
    return _missing_object(pod.waiting_text or "") or Problem(
        Reason.CONTAINER_NOT_STARTED,
        f"The container of pod {pod.name} cannot be created: {_clipped(pod.waiting_text)}",
        "Correct spec.pods of the job",
    )


def _container(pod: PodView) -> Problem | None:
    failures = ("CreateContainerError", "RunContainerError", "StartError", "PostStartHookError")
    if pod.waiting in failures:
        return Problem(
            Reason.CONTAINER_NOT_STARTED,
            f"The container of pod {pod.name} cannot start: {_clipped(pod.waiting_text)}",
            "Correct the image or spec.pods of the job",
        )
    if pod.running:
        return None
    for other in pod.others:
        if other.state == "waiting" and other.reason in (*failures, "CreateContainerConfigError", "CrashLoopBackOff"):
            return Problem(
                Reason.CONTAINER_NOT_STARTED,
                f"Container {other.name} of pod {pod.name} cannot start ({other.reason}): {_clipped(other.text)}",
                f"Read its log: kubectl logs {pod.name} -c {other.name}; it was added by spec.pods or by a webhook",
            )
    return None


def _gated(pod: PodView) -> Problem | None:
    if not pod.gates or pod.node:
        return None
    gates = ", ".join(pod.gates)
    return Problem(
        Reason.SCHEDULING_GATED,
        f"Pod {pod.name} is not scheduled while it has the scheduling gate {gates}",
        "The controller that set the gate removes it: check its queue, and that it runs",
    )


_OF_A_POD: tuple[Callable[[PodView], Problem | None], ...] = (_image, _configuration, _container, _gated)


def _missing_object(text: str) -> Problem | None:
    if match := re.search(r'secret "([^"]+)" not found', text):
        name = match[1]
        return Problem(
            Reason.MISSING_SECRET,
            f"Secret {name} does not exist in this namespace",
            f"Create it (kubectl create secret generic {name} ...), or correct the secretRef",
        )
    if match := re.search(r'configmap "([^"]+)" not found', text):
        name = match[1]
        return Problem(
            Reason.MISSING_CONFIG_MAP,
            f"ConfigMap {name} does not exist in this namespace",
            "Create it, or correct the caBundleRef, or spec.pods",
        )
    if match := re.search(r"couldn't find key (\S+) in (Secret|ConfigMap) \S*/([^\s/]+)", text):
        reason = Reason.MISSING_SECRET if match[2] == "Secret" else Reason.MISSING_CONFIG_MAP
        return Problem(reason, f"{match[2]} {match[3]} has no key {match[1]}", "Add the key, or correct spec.pods")
    return None


# Its placement.


def missing_claim(name: str) -> Problem:
    return Problem(
        Reason.MISSING_CLAIM,
        f"PersistentVolumeClaim {name} does not exist in this namespace",
        "Create it, or correct the pvc:// location that names it",
    )


def _unschedulable(pod: PodView) -> Problem:
    text = pod.unschedulable or ""
    if match := re.search(r'persistentvolumeclaim "([^"]+)" not found', text):
        return missing_claim(match[1])
    if match := re.search(r'persistentvolumeclaim "([^"]+)" is being deleted', text):
        return Problem(
            Reason.VOLUME_UNAVAILABLE,
            f"PersistentVolumeClaim {match[1]} is being deleted, so pod {pod.name} cannot use it",
            "Create the claim again once it is gone (pods that still use it: kubectl describe pvc), or use another one",
        )
    if "unbound immediate PersistentVolumeClaims" in text or "unbound PersistentVolumeClaim" in text:
        which = f"PersistentVolumeClaim {pod.claims[0]} is" if len(pod.claims) == 1 else "A PersistentVolumeClaim is"
        among = f" (one of {', '.join(pod.claims)})" if len(pod.claims) > 1 else ""
        return Problem(
            Reason.UNBOUND_CLAIM,
            f"{which} not bound to a volume{among}, so pod {pod.name} waits",
            "Check with kubectl describe pvc that its storage class exists and can provide a volume",
        )
    if "bound to non-existent p" in text:
        return Problem(
            Reason.UNBOUND_CLAIM,
            f"A PersistentVolumeClaim of pod {pod.name} is bound to a volume that does not exist: {_clipped(text)}",
            "Restore the PersistentVolume, or create the claim again",
        )
    for words, remedy in _VOLUME_REMEDIES:
        if words in text:
            return Problem(
                Reason.VOLUME_UNAVAILABLE,
                f"Pod {pod.name} cannot be scheduled where its volumes are ({', '.join(pod.claims) or 'no claim'}): {_clipped(text)}",
                remedy,
            )
    remedy = "Free or add nodes, lower spec.compute or spec.pods resources, or correct spec.pods nodeSelector, affinity and tolerations"
    if "node(s) were unschedulable" in text or "node.kubernetes.io/unschedulable" in text:
        remedy = (
            f"Uncordon the nodes that kubectl get nodes shows as SchedulingDisabled: kubectl uncordon NODE. {remedy}"
        )
    return Problem(
        Reason.UNSCHEDULABLE,
        f"Pod {pod.name} cannot be scheduled: {_clipped(text)}",
        remedy,
    )


_ELSEWHERE = "Free the nodes in the zone or on the host of the volume, and let spec.pods select them, or copy the files to a claim that all nodes can use"
_VOLUME_REMEDIES = (
    # In the scheduler's words: plugins volumerestrictions, volumebinding, volumezone, nodevolumelimits.
    ("ReadWriteOncePod", "End the other pod that uses the claim, or use a claim with access mode ReadWriteMany"),
    ("didn't match PersistentVolume's node affinity", _ELSEWHERE),
    ("had volume node affinity conflict", _ELSEWHERE),
    ("had no available volume zone", _ELSEWHERE),
    ("had no available disk", "End the other pod that uses the disk, or use a claim with access mode ReadWriteMany"),
    ("didn't find available persistent volumes to bind", "Create a PersistentVolume that matches the claim, or correct its storage class (kubectl describe pvc)"),
    ("did not have enough free storage", "Free storage on the nodes, or ask for a smaller claim"),
    ("exceed max volume count", "Free or add nodes: each attaches a limited number of volumes"),
)  # fmt: skip


def _no_scheduler(pod: PodView) -> Problem:
    if pod.scheduler == "default-scheduler":
        remedy = "Check that kube-scheduler runs: kubectl get pods -n kube-system"
    else:
        remedy = f"Check that a scheduler of the name {pod.scheduler} runs, or correct spec.pods.*.schedulerName"
    return Problem(
        Reason.NO_SCHEDULER,
        f"No scheduler has considered pod {pod.name} for more than {NO_SCHEDULER_S:.0f} s: its schedulerName is {pod.scheduler}",
        remedy,
    )


# Events.


def _events(
    seen: ObservedState, name: str, age: float, patience: float
) -> tuple[Diagnosis | None, Sequence[EventView] | None]:
    """The events, or what to do to get them. A negative age is a clock that differs: then nothing is waited for."""
    if 0 <= age < patience:
        return Diagnosis(requeue_after=patience - age + 0.5), None
    if name not in seen.warnings:
        return Diagnosis(reads=frozenset({Read("warnings", name)}), requeue_after=RECHECK_S), None
    return None, seen.warnings[name]


def _recheck(age: float) -> float:
    """The longer nothing happens, the less often it is checked: reading events costs a list request."""
    return min(max(RECHECK_S, age / 4), SLOWEST_RECHECK_S)


def _no_pods(seen: ObservedState, job: JobView, now: float) -> Diagnosis:
    age = now - max(job.created, job.released or 0.0)
    first, events = _events(seen, job.name, age, NO_PODS_S)
    if first is not None:
        return first
    # A pod that was created later shows that a refusal is over.
    last = max((int(pod.created) for pod in seen.pods.get(job.name, ())), default=0)
    problem = None
    if events is None:
        problem = Problem(
            Reason.PODS_NOT_CREATED, "The Job has no pods yet", f"Its events show why: kubectl describe job {job.name}"
        )
    elif (
        refused := next((event for event in events if event.reason == "FailedCreate" and event.seen >= last), None)
    ) is not None:
        problem = refused_pods(refused.text)
    elif age >= NO_CAUSE_S:
        problem = Problem(
            Reason.PODS_NOT_CREATED,
            f"The Job controller has created no pods of Job {job.name} for more than {NO_CAUSE_S / 60:.0f} minutes, and no event gives a cause",
            "Check that kube-controller-manager runs: kubectl get pods -n kube-system",
        )
    return Diagnosis(problem, requeue_after=_recheck(age))


def refused_pods(text: str) -> Problem:
    """Why the API server refuses pods, from its own sentence. The name of the pod is left out: each try has another."""
    text = re.sub(r'^(Error creating: )?(pods? "[^"]*" is forbidden: )?', "", text)
    if match := re.search(r"failed quota: [^:]+: must specify (.+)", text):
        fields = sorted(set(re.findall(r"((?:limits|requests)\.[\w./-]+|cpu|memory|ephemeral-storage)(?= for:)", text)))
        fields = [name if "." in name else f"requests.{name}" for name in fields]
        named = ", ".join(f"spec.pods.common.resources.{name}" for name in fields) or "spec.pods.common.resources"
        return Problem(
            Reason.RESOURCES_NOT_SET,
            f"The quota of the namespace requires resources that the pods do not set: must specify {_clipped(match[1])}",
            f"Set {named}, or add a LimitRange with defaults to the namespace",
        )
    for words, reason, message, remedy in _REFUSALS:
        if re.search(words, text):
            return Problem(reason, f"{message}: {_clipped(text)}", remedy)
    return Problem(
        Reason.PODS_NOT_CREATED,
        f"The Job's pods cannot be created: {_clipped(text)}",
        "Change the policy or webhook that refuses them, or correct spec.pods",
    )


_REFUSALS = (
    # In the API server's words: its admission plugins.
    ("exceeded quota", Reason.QUOTA_EXCEEDED, "The namespace's quota allows no more pods", "Free quota or raise it (kubectl describe quota), or lower spec.compute and spec.pods resources"),
    ("violates PodSecurity", Reason.POD_SECURITY, "The namespace's Pod Security level refuses the pods", "Remove what it names from spec.pods, or use a namespace with another level"),
    (r"(?:minimum|maximum) \S+ usage per (?:Container|Pod)|max limit to request ratio per", Reason.LIMIT_RANGE_VIOLATED, "A LimitRange of the namespace refuses the pods", "Change spec.pods resources or spec.compute, or the LimitRange (kubectl describe limitrange)"),
    ("no PriorityClass with name", Reason.MISSING_PRIORITY_CLASS, "The PriorityClass does not exist", "Create it, or correct spec.scheduling.priorityClass"),
    (r"RuntimeClass(?:\.node\.k8s\.io)? \S+ not found", Reason.MISSING_RUNTIME_CLASS, "The RuntimeClass does not exist", "Create it, or correct spec.pods.*.runtimeClassName"),
    ("error looking up service account|serviceaccount \"[^\"]+\" not found", Reason.MISSING_SERVICE_ACCOUNT, "The service account does not exist", "Create it in this namespace, or correct spec.pods.*.serviceAccountName"),
)  # fmt: skip


def _slow(seen: ObservedState, pod: PodView, now: float) -> Diagnosis:
    """A pod that has a node and does not start: the newest event about its start decides."""
    age = now - pod.created
    if (
        init := next((other.name for other in pod.others if other.state == "running" and other.init), None)
    ) is not None:
        return Diagnosis(note=f"Init container {init} of pod {pod.name} is running")
    first, events = _events(seen, pod.name, age, SLOW_START_S)
    if first is not None:
        return first
    relevant = [
        event
        for event in events or ()
        if event.reason in (_STOPS_A_START if event.warning else _PROGRESS)
        # In whole seconds: an event of the second of the change may be later.
        and (not event.warning or event.seen >= int(pod.progressed or 0))
    ]
    newest = max(relevant, key=lambda event: (event.seen, event.warning), default=None)
    if newest is not None and newest.warning:
        return Diagnosis(_not_starting(pod, newest), requeue_after=_recheck(age))
    if newest is not None and newest.reason == "Pulling":
        image = f" {pod.image}" if pod.image else ""
        note = f"Node {pod.node} is pulling image{image} of pod {pod.name} since {stamp(newest.seen)}"
        return Diagnosis(requeue_after=_recheck(age), note=note)
    quiet = now - max(pod.progressed or pod.created, 0.0 if newest is None else newest.seen)
    if quiet < NO_CAUSE_S:
        return Diagnosis(requeue_after=min(_recheck(age), max(NO_CAUSE_S - quiet + 0.5, 1.0)))
    unread = "its events cannot be read" if events is None else "no event gives a cause"
    problem = Problem(
        Reason.POD_NOT_STARTED,
        f"Pod {pod.name} has not started on node {pod.node} for more than {NO_CAUSE_S / 60:.0f} minutes, and {unread}",
        f"Run kubectl describe pod {pod.name}, and check that the kubelet runs: kubectl describe node {pod.node}",
    )
    return Diagnosis(problem, requeue_after=_recheck(age))


def _not_starting(pod: PodView, event: EventView) -> Problem:
    if missing := _missing_object(event.text):
        return missing
    volumes = event.reason in ("FailedMount", "FailedAttachVolume", "FailedMapVolume")
    if "Multi-Attach" in event.text:
        remedy = "End the other pod that uses the volume, or wait until its node has released it (kubectl get volumeattachments)"
    elif volumes:
        remedy = "Correct the volume, or the driver that mounts it on the node (kubectl describe pvc)"
    elif event.reason in ("FailedCreatePodSandBox", "NetworkNotReady"):
        remedy = f"Repair the network plugin or the container runtime of the node: kubectl describe node {pod.node}"
    else:
        remedy = f"Fix the problem above: kubectl describe pod {pod.name}"
    return Problem(
        Reason.MOUNT_FAILED if volumes else Reason.CONTAINER_NOT_STARTED,
        f"Pod {pod.name} does not start on node {pod.node}: {_clipped(event.text)}",
        remedy,
    )


def _clipped(text: str | None, limit: int = 600) -> str:
    line = " ".join(redact(text or "").split()).rstrip(".")
    return line if len(line) <= limit else line[: limit - 1] + "…"
