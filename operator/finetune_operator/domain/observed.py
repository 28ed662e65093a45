"""What the plan sees: small records made from the API server's objects.

Records are equal when nothing that a plan looks at differs, so an update that changes nothing wakes nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from finetune_api.contract import (
    CONTAINER,
    LABEL_ATTEMPT,
    LABEL_RUN,
    LABEL_STAGE,
    LABEL_UID,
    Progress,
    TerminationMessage,
)
from finetune_api.finetunejob import FineTuneJob
from finetune_api.secret_patterns import redact

from finetune_operator.domain.diagnosis.termination_message import parse_termination_message
from finetune_operator.domain.names import ANNOTATION_DIGEST, ANNOTATION_HELD, attempt_name
from finetune_operator.domain.times import seconds_of

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
JOB_CONTROLLER = "kubernetes.io/job-controller"

Object = Mapping[str, Any]


def controller_uid(body: Object) -> str | None:
    """uid of the object that controls this one."""
    for reference in body["metadata"].get("ownerReferences") or ():
        if reference.get("controller"):
            return str(reference["uid"])
    return None


def _condition(body: Object, kind: str, status: str = "True") -> Mapping[str, Any] | None:
    for condition in (body.get("status") or {}).get("conditions") or ():
        if condition.get("type") == kind and condition.get("status") == status:
            found: Mapping[str, Any] = condition
            return found
    return None


def _since(body: Object, kind: str, status: str = "True") -> float | None:
    condition = _condition(body, kind, status)
    return None if condition is None else seconds_of(condition.get("lastTransitionTime")) or 0.0


@dataclass(frozen=True, slots=True)
class JobView:
    """A batch/v1 Job of ours. Times in seconds since 1970; `complete`, `failed`, `failing` and `suspended_since` say since when."""

    name: str
    uid: str
    owner: str | None
    run: str
    stage: str
    attempt: int
    created: float
    pods: int = 1
    """How many it was made with: spec.compute.nodes may have changed since."""
    deleting: bool = False
    suspended: bool = False
    suspended_since: float | None = None
    released: float | None = 0.0
    """Since when its controller makes pods for it, by its own word, which comes after the spec's: older pods are of before a
    suspension. None while it makes none."""
    held: bool = False
    managed_elsewhere: bool = False
    digest: str | None = None
    complete: float | None = None
    failed: float | None = None
    failing: float | None = None
    failure: str | None = None

    @property
    def alive(self) -> bool:
        """Its controller may still make pods for it."""
        return self.complete is None and self.failed is None and self.failing is None

    @classmethod
    def of(cls, body: Object) -> JobView:
        metadata, spec = body["metadata"], body.get("spec") or {}
        labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
        failed = _condition(body, "Failed") or _condition(body, "FailureTarget")
        number = labels.get(LABEL_ATTEMPT, "")
        return cls(
            name=metadata["name"],
            uid=metadata["uid"],
            owner=controller_uid(body),
            run=labels.get(LABEL_RUN, ""),
            stage=labels.get(LABEL_STAGE, ""),
            attempt=int(number) if number.isdigit() else 0,
            created=seconds_of(metadata.get("creationTimestamp")) or 0.0,
            pods=spec.get("completions") or 1,
            deleting=metadata.get("deletionTimestamp") is not None,
            suspended=bool(spec.get("suspend")),
            suspended_since=_since(body, "Suspended") if spec.get("suspend") else None,
            released=None if _condition(body, "Suspended") else _since(body, "Suspended", "False") or 0.0,
            held=ANNOTATION_HELD in annotations,
            managed_elsewhere=QUEUE_LABEL in labels or spec.get("managedBy") not in (None, JOB_CONTROLLER),
            digest=annotations.get(ANNOTATION_DIGEST),
            complete=_since(body, "Complete"),
            failed=_since(body, "Failed"),
            failing=_since(body, "FailureTarget"),
            failure=None if failed is None else f"{failed.get('reason', '')}: {failed.get('message', '')}",
        )


@dataclass(frozen=True, slots=True)
class Ended:
    """How a pod's container ended. `text` is its termination message (or the end of its log)."""

    exit_code: int
    reason: str
    text: str
    started: float | None
    finished: float | None

    @property
    def message(self) -> TerminationMessage | None:
        return parse_termination_message(self.text) if self.text else None


@dataclass(frozen=True, slots=True)
class OtherContainer:
    """A container of a pod that is not the trainer, and that failed, or that the pod waits for."""

    name: str
    state: Literal["failed", "waiting", "running"]
    exit_code: int = 0
    reason: str = ""
    text: str = ""
    image: str | None = None
    init: bool = False
    """An init container that has to end before the trainer starts. Native sidecars are none."""


@dataclass(frozen=True, slots=True)
class PodView:
    """A pod of an attempt, by its labels: the Job that created it may be gone. Times in seconds since 1970."""

    name: str
    uid: str
    attempt: str
    """Name of the attempt's Job."""
    index: int
    phase: str
    created: float
    node: str | None = None
    ip: str | None = None
    reason: str | None = None
    text: str | None = None
    deletion_asked: float | None = None
    """When somebody asked for its deletion."""
    deletion_due: float | None = None
    """When its grace period ends."""
    unschedulable: str | None = None
    unschedulable_since: float | None = None
    scheduler: str = "default-scheduler"
    considered: bool = True
    """Whether a scheduler has written a PodScheduled condition."""
    gates: tuple[str, ...] = ()
    """Names of its scheduling gates."""
    progressed: float | None = None
    """When it last came further: scheduled, volumes mounted and sandbox created, init containers done."""
    not_ready_since: float | None = None
    """Since when its node does not answer: the node lifecycle controller sets Ready, but not ContainersReady, to False."""
    pull_secrets: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()
    """PersistentVolumeClaims that it mounts."""
    waiting: str | None = None
    waiting_text: str | None = None
    image: str | None = None
    running_since: float | None = None
    ended: Ended | None = None
    disrupted: str | None = None
    others: tuple[OtherContainer, ...] = ()
    owner: str = ""
    """uid of the FineTuneJob."""

    @property
    def still_running(self) -> tuple[str, ...]:
        """Names of the containers next to the trainer that keep the pod from ending."""
        return tuple(other.name for other in self.others if other.state == "running" and not other.init)

    @property
    def over(self) -> bool:
        """Nothing of it runs any more."""
        return self.phase in ("Succeeded", "Failed")

    @property
    def running(self) -> bool:
        return self.running_since is not None and not self.over

    @classmethod
    def of(cls, body: Object) -> PodView:
        metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
        index = (metadata.get("labels") or {}).get(INDEX_LABEL, "0")
        due = seconds_of(metadata.get("deletionTimestamp"))
        grace = metadata.get("deletionGracePeriodSeconds") or 0
        state, image = _container(status)
        waiting, running, ended = state.get("waiting"), state.get("running"), state.get("terminated")
        conditions: dict[Any, Mapping[str, Any]] = {c.get("type"): c for c in status.get("conditions") or ()}
        place = conditions.get("PodScheduled", {})
        unplaced = place.get("status") == "False"
        disruption = _condition(body, "DisruptionTarget")
        return cls(
            name=metadata["name"],
            uid=metadata["uid"],
            attempt=attempt_name(metadata.get("labels") or {}),
            owner=(metadata.get("labels") or {}).get(LABEL_UID, ""),
            index=int(index) if index.isdigit() else 0,
            phase=status.get("phase") or "Pending",
            created=seconds_of(metadata.get("creationTimestamp")) or 0.0,
            node=spec.get("nodeName"),
            ip=status.get("podIP"),
            reason=status.get("reason"),
            text=_redacted(status.get("message")),
            deletion_asked=None if due is None else due - grace,
            deletion_due=due,
            unschedulable=place.get("message", "") if unplaced and place.get("reason") != "SchedulingGated" else None,
            unschedulable_since=seconds_of(place.get("lastTransitionTime")) if unplaced else None,
            scheduler=spec.get("schedulerName") or "default-scheduler",
            considered=bool(place),
            gates=tuple(gate.get("name", "") for gate in spec.get("schedulingGates") or ()),
            progressed=max(
                (
                    since
                    for name in ("PodScheduled", "PodReadyToStartContainers", "Initialized")
                    if conditions.get(name, {}).get("status") == "True"
                    and (since := seconds_of(conditions[name].get("lastTransitionTime"))) is not None
                ),
                default=None,
            ),
            not_ready_since=_not_ready_since(conditions) if running is not None else None,
            pull_secrets=tuple(secret.get("name", "") for secret in spec.get("imagePullSecrets") or ()),
            claims=tuple(
                volume["persistentVolumeClaim"]["claimName"]
                for volume in spec.get("volumes") or ()
                if "persistentVolumeClaim" in volume
            ),
            waiting=None if waiting is None else waiting.get("reason"),
            waiting_text=None if waiting is None else _redacted(waiting.get("message")),
            image=image,
            running_since=None if running is None else seconds_of(running.get("startedAt")) or 0.0,
            ended=None
            if ended is None
            else Ended(
                exit_code=ended.get("exitCode", -1),
                reason=ended.get("reason") or "",
                text=ended.get("message") or "",
                started=seconds_of(ended.get("startedAt")),
                finished=seconds_of(ended.get("finishedAt")),
            ),
            disrupted=None
            if disruption is None
            else f"{disruption.get('reason', '')}: {disruption.get('message', '')}".rstrip(": "),
            others=_others(spec, status, trainer_ended=ended is not None),
        )


def _container(status: Object) -> tuple[Mapping[str, Any], str | None]:
    """State and image of the trainer."""
    for container in status.get("containerStatuses") or ():
        if container.get("name") == CONTAINER:
            return container.get("state") or {}, container.get("image")
    return {}, None


_ORDINARY_WAITS = (None, "PodInitializing", "ContainerCreating")


def _others(spec: Object, status: Object, *, trainer_ended: bool) -> tuple[OtherContainer, ...]:
    """Containers that webhooks and policies add: those that failed, that cannot start, those that the trainer waits for, and those
    that run when it has ended. In their usual states they are left out, so that their changes wake nobody."""
    native = {c.get("name") for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always"}
    found = []
    for group in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(group) or ():
            name, state = container.get("name", ""), container.get("state") or {}
            init = group == "initContainerStatuses" and name not in native
            waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
            if name == CONTAINER:
                continue
            if (
                ended.get("exitCode") and name not in native
            ):  # native sidecars are ended by the kubelet, after the others
                text = redact(ended.get("message") or "")
                found.append(
                    OtherContainer(name, "failed", ended["exitCode"], ended.get("reason") or "", text, init=init)
                )
            elif waiting.get("reason") not in _ORDINARY_WAITS:
                text, image = redact(waiting.get("message") or ""), container.get("image")
                found.append(OtherContainer(name, "waiting", 0, waiting["reason"], text, image, init))
            elif "running" in state and (init or (trainer_ended and group == "containerStatuses")):
                found.append(OtherContainer(name, "running", init=init))
    return tuple(found)


def _not_ready_since(conditions: Mapping[Any, Mapping[str, Any]]) -> float | None:
    ready, containers = conditions.get("Ready", {}), conditions.get("ContainersReady", {})
    if ready.get("status") != "False" or containers.get("status") == "False":
        return None
    if ready.get("reason") == "ReadinessGatesNotReady":
        return None
    return seconds_of(ready.get("lastTransitionTime"))


def _redacted(text: str | None) -> str | None:
    return text and redact(text)


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node that was asked for. `ready` None: unknown, for instance since this operator may not read nodes."""

    name: str
    ready: bool | None
    since: float | None = None
    """When `ready` changed; None for a node that does not exist."""

    @classmethod
    def of(cls, body: Object) -> NodeView:
        """`Unknown` is what the node lifecycle controller writes for a kubelet that is silent: not ready."""
        ready: Mapping[str, Any] = next(
            (c for c in (body.get("status") or {}).get("conditions") or () if c.get("type") == "Ready"), {}
        )
        state = {"True": True, "False": False, "Unknown": False}.get(ready.get("status", ""))
        return cls(body["metadata"]["name"], state, seconds_of(ready.get("lastTransitionTime")))


@dataclass(frozen=True, slots=True)
class EventView:
    """An event about an object. `seen`: when it last happened, in seconds since 1970."""

    warning: bool
    reason: str
    text: str
    seen: float

    @classmethod
    def of(cls, body: Object) -> EventView:
        """Of events.k8s.io/v1; what was written as core/v1 has its times in the deprecated fields."""
        last = (
            (body.get("series") or {}).get("lastObservedTime")
            or body.get("deprecatedLastTimestamp")
            or body.get("eventTime")
            or body["metadata"].get("creationTimestamp")
        )
        return cls(
            body.get("type") == "Warning",
            body.get("reason") or "",
            redact(body.get("note") or ""),
            seconds_of(last) or 0.0,
        )


@dataclass(frozen=True, slots=True)
class ClaimView:
    """A PersistentVolumeClaim that was asked for. `found` None: this operator may not read claims."""

    name: str
    found: bool | None
    access_modes: tuple[str, ...] = ()

    @classmethod
    def of(cls, body: Object) -> ClaimView:
        modes = (body.get("spec") or {}).get("accessModes") or ()
        return cls(name=body["metadata"]["name"], found=True, access_modes=tuple(modes))


@dataclass(frozen=True, slots=True)
class Refusal:
    """The API server refused a request for a child. `code` is the HTTP status."""

    kind: str
    name: str
    code: int
    message: str
    verb: Literal["create", "change", "delete"] = "create"
    due: bool = True
    """Its backoff has passed: the request may be repeated."""


@dataclass(frozen=True, slots=True)
class ProgressReading:
    """The last answer of rank 0's endpoint, or why there was none."""

    pod_uid: str
    progress: Progress | None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Read:
    """Something that the plan must know and the cache does not hold: a claim, a node, the events about an object, or whether a Job
    that the cache does not have is really gone."""

    kind: Literal["claim", "warnings", "node", "job", "pods"]
    name: str


@dataclass(frozen=True, slots=True)
class ObservedState:
    """One job with everything around it, at one moment."""

    job: FineTuneJob
    invalid: str | None = None
    """Why `job.spec` could not be read whole; what could be read of it is there."""
    unreadable: frozenset[str] = frozenset()
    """Fields of `job.status` that another version wrote and this one cannot read."""
    jobs: Mapping[str, JobView] = field(default_factory=dict)
    """Its Jobs by name."""
    pods: Mapping[str, tuple[PodView, ...]] = field(default_factory=dict)
    """Pods by the name of their attempt's Job, also where that Job is gone."""
    departed: Mapping[str, tuple[PodView, ...]] = field(default_factory=dict)
    """Pods that ended and are gone since the last reconcile, likewise."""
    known: frozenset[tuple[str, str]] = frozenset()
    """(kind, name) of other children that are known to exist."""
    claims: Mapping[str, ClaimView] = field(default_factory=dict)
    nodes: Mapping[str, NodeView] = field(default_factory=dict)
    warnings: Mapping[str, tuple[EventView, ...] | None] = field(default_factory=dict)
    """Events about an object by its name, newest first; None: this operator may not read events."""
    refusals: Mapping[tuple[str, str], Refusal] = field(default_factory=dict)
    """Children that were refused, by (kind, name)."""
    pods_read: frozenset[str] = frozenset()
    """Attempts whose pods were read past the watch, by the name of their Job."""
    jobs_read: Mapping[str, bool] = field(default_factory=dict)
    """Whether Jobs exist that are not in `jobs`, by name."""
    progress: ProgressReading | None = None
