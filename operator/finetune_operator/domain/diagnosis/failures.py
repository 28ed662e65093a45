"""Why an attempt ended other than well, and what follows.

One gang is one unit: the earliest failing rank speaks for it. A rank that knows its cause (exits 3, 4 and 6) is believed
before anything else. Then disruption: a pod that was evicted, preempted, deleted, lost with its node or never seen
again makes the others fail too, and is nobody's error. Whatever is left counts against retry.infra.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from finetune_api.contract import ExitCode, TerminationMessage
from finetune_api.status import FailureStatus, Stage

from finetune_operator.domain.observed import JobView, PodView
from finetune_operator.domain.reasons import Code

LOST_NODE_S = 300.0
"""How long a pod may stand past its grace period before its node is taken for dead."""

# Reasons in pod.status.reason with which Kubernetes itself ends a pod.
_ENDED_BY_CLUSTER = {
    "Evicted",
    "NodeLost",
    "NodeShutdown",
    "Shutdown",
    "Terminated",
    "Preempting",
    "NodeAffinity",
    "UnexpectedAdmissionError",
    "OutOfcpu",
    "OutOfmemory",
    "OutOfpods",
}
_DECISIVE = {
    ExitCode.BAD_INPUT: Code.BAD_INPUT,
    ExitCode.OUT_OF_MEMORY: Code.OUT_OF_MEMORY,
    ExitCode.DIVERGED: Code.DIVERGED,
}
_REMEDY = {
    Code.OUT_OF_MEMORY: "Ask for more memory in spec.pods.{stage}.resources, or lower compute.microBatchTokens or data.maxLength",
    Code.DIVERGED: "Lower training.learningRate, raise training.warmupRatio, or look at the data; the best checkpoint is kept in the workspace",
    Code.BAD_INPUT: "Mend what the message names and create the job again",
    Code.PEER_LOST: "Look at the logs of the other pods; if it comes again, at the network between the nodes",
    Code.STORAGE_FULL: "Raise spec.pods.{stage}.resources.limits[ephemeral-storage], or use nodes with a larger disk",
    Code.UNKNOWN: "Read the pod's log: kubectl logs {pod}",
}
_SECRET = re.compile(r"\b(hf_|sk-|ghp_|AKIA)[A-Za-z0-9_-]{6,}|(?i:bearer|password|token|secret)[=: ]+\S+")


@dataclass(frozen=True, slots=True)
class FailureClass:
    """`fatal`: never retried. `infra`: counts against retry.infra. `evicted`: goes on without limit."""

    kind: Literal["fatal", "infra", "evicted"]
    failure: FailureStatus
    last_step: int | None = None


def is_lost(pod: PodView, now: float) -> bool:
    """The pod should have ended long ago and has not: nothing on its node answers."""
    return not pod.over and pod.deletion_due is not None and now > pod.deletion_due + LOST_NODE_S


def classify_failure(job: JobView, pods: Sequence[PodView], stage: Stage, now: float) -> FailureClass:
    """The verdict on a Job that failed. `pods` are all that are known of it, those of earlier resumes too."""
    failing = sorted((pod for pod in pods if _failed(pod)), key=_when)
    step = max((m.step for pod in pods if (m := _message(pod)) is not None and m.step is not None), default=None)
    for pod in failing:
        code = _known_cause(pod)
        if code is not None:
            return FailureClass("fatal", _failure(pod, stage, code, retriable=False), step)
    first = failing[0] if failing else None
    disrupted = _disruption(job, pods, first, now)
    if disrupted is not None:
        return FailureClass("evicted", disrupted.model_copy(update={"stage": stage, "retriable": True}), step)
    if first is None:
        message = f"The {stage} Job failed without a failing pod: {job.failure or 'no reason given'}"
        return FailureClass(
            "infra", FailureStatus(code=Code.UNKNOWN, stage=stage, message=message, retriable=True), step
        )
    exit_code = _exit_code(first)
    code = Code.PEER_LOST if exit_code == ExitCode.PEER_LOST else Code.UNKNOWN
    if _too_much_disk(first):
        code = Code.STORAGE_FULL
    return FailureClass("infra", _failure(first, stage, code, retriable=True), step)


def node_lost(stage: Stage, pod: PodView) -> FailureClass:
    """The attempt continues elsewhere, without waiting for the Job controller, which waits for the kubelet."""
    message = f"Node {pod.node} does not answer: pod {pod.name} should have ended {LOST_NODE_S / 60:.0f} minutes ago"
    failure = FailureStatus(
        code="NodeLost", stage=stage, rank=pod.index, node=pod.node, message=message, retriable=True
    )
    return FailureClass("evicted", failure)


def vanished(stage: Stage, what: str) -> FailureClass:
    """The attempt's Job or pods are gone, and nobody saw how they ended."""
    message = f"{what} vanished while it ran; an attempt that nobody saw end counts as evicted"
    return FailureClass("evicted", FailureStatus(code="Evicted", stage=stage, message=message, retriable=True))


def _message(pod: PodView) -> TerminationMessage | None:
    return pod.ended.message if pod.ended is not None else None


def _exit_code(pod: PodView) -> int | None:
    """The trainer's own word first: launchers mask the codes of their children."""
    message = _message(pod)
    if message is not None and message.outcome == "failed":
        return message.exit_code
    return pod.ended.exit_code if pod.ended is not None else None


def _failed(pod: PodView) -> bool:
    if pod.phase == "Failed":
        return _exit_code(pod) != ExitCode.STOPPED
    return pod.ended is not None and _exit_code(pod) not in (0, ExitCode.STOPPED)


def _when(pod: PodView) -> float:
    message = _message(pod)
    if message is not None and message.time:
        return message.time
    if pod.ended is not None and pod.ended.finished is not None:
        return pod.ended.finished
    return float("inf")


def _known_cause(pod: PodView) -> Code | None:
    if pod.ended is not None and pod.ended.reason == "OOMKilled":
        return Code.OUT_OF_MEMORY
    exit_code = _exit_code(pod)
    return next((code for decisive, code in _DECISIVE.items() if exit_code == decisive), None)


def _too_much_disk(pod: PodView) -> bool:
    return (
        pod.reason == "Evicted"
        and re.search(r"ephemeral.?storage usage exceeds|EmptyDir volume .* exceeds", pod.text or "") is not None
    )


def _disruption(job: JobView, pods: Sequence[PodView], first: PodView | None, now: float) -> FailureStatus | None:
    if first is not None and _too_much_disk(first):
        return None  # evicted for its own use of the disk: it would be evicted again
    for pod in pods:
        where = f" on node {pod.node}" if pod.node else ""
        if pod.disrupted is not None:
            return _evicted(pod, f"Pod {pod.name} was disrupted{where}: {pod.disrupted}")
        if pod.reason in _ENDED_BY_CLUSTER:
            return _evicted(
                pod, f"Pod {pod.name} was ended by the cluster{where}: {pod.reason} {pod.text or ''}".rstrip()
            )
        if _deleted_by_somebody(pod, job, pods):
            return _evicted(pod, f"Pod {pod.name} was deleted{where}")
        if is_lost(pod, now):
            lost = _evicted(pod, f"Pod {pod.name} does not end{where}: the node is considered lost")
            return lost.model_copy(update={"code": "NodeLost"})
    if len({pod.index for pod in pods}) < job.pods:
        return vanished("train", "A pod").failure
    return None


def _deleted_by_somebody(pod: PodView, job: JobView, pods: Sequence[PodView]) -> bool:
    """The Job controller deletes the rest of a gang too, but only after the first failure. Both times are the servers' own, in
    whole seconds; within the same second a pod that failed by itself, not for want of a peer, decides."""
    failing = job.failing or job.failed
    if pod.deletion_asked is None or failing is None or pod.deletion_asked > failing:
        return False
    if pod.deletion_asked < failing:
        return True
    return all(p.deletion_asked is not None or _exit_code(p) == ExitCode.PEER_LOST for p in pods if _failed(p))


def _evicted(pod: PodView, message: str) -> FailureStatus:
    return FailureStatus(code="Evicted", rank=pod.index, node=pod.node, message=message)


def _failure(pod: PodView, stage: Stage, code: Code, *, retriable: bool) -> FailureStatus:
    message, cause = _message(pod), None
    if message is not None:
        cause = message.cause
    if cause is not None:
        text, remedy, code_text = cause.message, cause.remedy, cause.code
    else:
        text, remedy, code_text = _text(pod, stage, code), None, str(code)
    remedy = remedy or _REMEDY[code].format(stage=stage, pod=pod.name)
    return FailureStatus(
        code=code_text,
        stage=stage,
        rank=pod.index if message is None else message.rank,
        node=pod.node,
        exit_code=_exit_code(pod),
        message=text[:2000],
        remedy=remedy[:1000],
        retriable=retriable,
    )


def _text(pod: PodView, stage: Stage, code: Code) -> str:
    """What can be said of a pod whose trainer said nothing: how it ended and the last line of its log."""
    if code == Code.STORAGE_FULL:
        return f"Pod {pod.name} used too much disk: {pod.text}"
    if pod.ended is None:
        return f"Pod {pod.name} of stage {stage} failed: {pod.reason or 'no reason given'} {pod.text or ''}".rstrip()
    lines = [line.strip() for line in pod.ended.text.splitlines() if line.strip()]
    last = f"; its log ends with: {_SECRET.sub('[removed]', lines[-1][:400])}" if lines else ""
    how = "ran out of memory" if code == Code.OUT_OF_MEMORY else f"ended with exit code {pod.ended.exit_code}"
    return f"Pod {pod.name} of stage {stage} {how} ({pod.ended.reason or 'no reason given'}){last}"
