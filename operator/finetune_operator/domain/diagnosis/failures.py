"""Why an attempt failed, and whether it is retried.

One gang is one unit: the earliest failing rank decides, those that only lost a peer last. In this order, each before everything below it:

1. A rank that knows its cause (exits 3, 4 and 6, or killed for its memory limit): never retried.
2. A deadline that somebody set on the Job.
3. A pod that the kubelet evicted for its own use of memory or disk: it would be evicted again, so it counts.
4. A disruption: evicted, preempted, deleted, rejected by the kubelet, lost with its node, or vanished. Does not count.
5. Everything else counts against spec.retry.infra.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from finetune_api.contract import ExitCode, TerminationMessage
from finetune_api.failures import FAILURES, FailureCode, FailureKind, known_code
from finetune_api.secret_patterns import redact
from finetune_api.status import FailureStatus, Stage

from finetune_operator.domain.observed import JobView, NodeView, OtherContainer, PodView

LOST_NODE_S = 300.0
"""How long after a pod's grace period, or after its node was last ready, the node is considered lost."""

_LONGEST_MESSAGE, _LONGEST_REMEDY, _LONGEST_CODE = 2000, 1000, 64
_DECISIVE: dict[int, FailureCode] = {
    ExitCode.BAD_INPUT: FailureCode.BAD_INPUT,
    ExitCode.OUT_OF_MEMORY: FailureCode.OUT_OF_MEMORY,
    ExitCode.DIVERGED: FailureCode.DIVERGED,
}
# Reasons in pod.status.reason with which Kubernetes ends a pod, whether or not its containers started.
_ENDED_BY_CLUSTER = re.compile(
    "Evicted|NodeLost|NodeShutdown|Shutdown|Terminated|Preempting|NodeAffinity|NodePorts|UnexpectedAdmissionError"
    "|TopologyAffinityError|OutOf.*"
)
# What the kubelet writes for a container whose end nobody observed: the pod was removed, or the node restarted.
_END_NOT_OBSERVED = {(137, "ContainerStatusUnknown"), (255, "Unknown")}


@dataclass(frozen=True, slots=True)
class FailureClass:
    """`fatal`: never retried. `infra`: counts against retry.infra. `evicted`: resumes without using a retry."""

    kind: FailureKind
    failure: FailureStatus
    last_step: int | None = None


class _OwnUsage(NamedTuple):
    code: FailureCode
    message: str
    remedy: str


def classify_failure(
    job: JobView, pods: Sequence[PodView], stage: Stage, now: float, nodes: Mapping[str, NodeView] | None = None
) -> FailureClass:
    """Classify the end of a Job that failed. `pods` are all that are known of it, those of earlier resumes too."""
    step = max((m.step for pod in pods if (m := _message(pod)) is not None and m.step is not None), default=None)
    pods = _since_release(job, pods)
    failing = sorted((pod for pod in pods if _failed(pod)), key=_when)
    failure = (
        _known_cause(job, failing, stage)
        or _deadline(job, failing, stage)
        or _evicted_for_own_usage(pods, stage)
        or _disruption(job, pods, failing, stage, now, nodes or {})
        or _other(job, failing, stage)
    )
    return FailureClass(failure[0], failure[1], step)


def node_lost(stage: Stage, pod: PodView) -> FailureClass:
    """The attempt continues elsewhere, without waiting for the Job controller, which waits for the kubelet."""
    why = "was last ready" if pod.deletion_due is None else "should have ended"
    minutes = f"{LOST_NODE_S / 60:.0f}"
    message = f"Node {pod.node} does not answer: pod {pod.name} {why} more than {minutes} minutes ago"
    return FailureClass(*_status(FailureCode.NODE_LOST, stage, message, pod))


def vanished(stage: Stage, what: str) -> FailureClass:
    """The attempt's Job or pods are gone, and how they ended is unknown."""
    message = f"{what} vanished while it ran; an attempt whose end was not observed counts as evicted"
    return FailureClass("evicted", _status(FailureCode.EVICTED, stage, message)[1])


def start_timeout(stage: Stage, limit: str, why: str | None) -> FailureClass:
    """The pods of an attempt did not start within spec.retry.startTimeout."""
    cause = f": {why}" if why else ""
    message = f"The pods of stage {stage} did not start within spec.retry.startTimeout {limit}{cause}"
    return FailureClass(*_status(FailureCode.START_TIMEOUT, stage, message))


def own_usage(pod: PodView) -> str | None:
    """The kubelet's sentence, if it evicted the pod for its own use of memory or disk."""
    usage = _own_usage(pod, "train")
    return None if usage is None else usage.message


def evicted_for_own_usage(job: JobView, pods: Sequence[PodView], stage: Stage) -> FailureClass | None:
    """Classify such an eviction, also where the trainer saved a checkpoint and ended with 5; None if there was none."""
    found = _evicted_for_own_usage(_since_release(job, pods), stage)
    return None if found is None else FailureClass(found[0], found[1])


def is_lost(pod: PodView, now: float, nodes: Mapping[str, NodeView] | None = None) -> bool:
    """Nothing on its node answers: the pod should have ended, or was last ready, five minutes ago. `nodes`: those that were read."""
    since = _lost_at(pod, nodes or {}, now)
    return since is not None and since <= now


def node_check_due(pods: Sequence[PodView], nodes: Mapping[str, NodeView], now: float) -> float | None:
    """Seconds until `is_lost` may hold for a pod for which it does not yet. No event comes from a node that is dead."""
    due = [at - now for pod in pods if (at := _lost_at(pod, nodes, now)) is not None and at > now]
    return min(due, default=None)


def _lost_at(pod: PodView, nodes: Mapping[str, NodeView], now: float) -> float | None:
    """When the pod is considered lost, unless something changes before."""
    if pod.over:
        return None
    node, since = nodes.get(pod.node or ""), []
    if pod.deletion_due is not None:
        since.append(pod.deletion_due + LOST_NODE_S)
    if node is not None and node.ready is False:
        since.append(now if node.since is None else node.since + LOST_NODE_S)
    elif pod.not_ready_since is not None and (node is None or node.ready is None):
        since.append(pod.not_ready_since + LOST_NODE_S)
    return min(since, default=None)


# The steps of the classification. Each returns None if it does not apply.

_Found = tuple[FailureKind, FailureStatus]

_NO_CAUSE = (None, 0, ExitCode.STOPPED, ExitCode.PEER_LOST, 128 + signal.SIGKILL, 128 + signal.SIGTERM)
"""Exits that say nothing of why the gang ended."""


def _known_cause(job: JobView, failing: Sequence[PodView], stage: Stage) -> _Found | None:
    for pod in failing:
        if pod.ended is not None and pod.ended.reason == "OOMKilled":
            return _of_trainer(pod, stage, FailureCode.OUT_OF_MEMORY)
        if (code := _DECISIVE.get(_exit_code(pod) or 0)) is not None:
            return _of_trainer(pod, stage, code)
    # The Job controller has seen the exit code of a pod that is gone.
    gone = re.search(
        r"Container \S+ for pod (\S+) failed with exit code (\d+) matching FailJob rule", job.failure or ""
    )
    if gone is None or (code := _DECISIVE.get(int(gone[2]))) is None:
        return None
    message = f"Pod {gone[1]} failed with exit code {gone[2]}; it was deleted before its message was read"
    return _status(code, stage, message, exit_code=int(gone[2]))


def _deadline(job: JobView, failing: Sequence[PodView], stage: Stage) -> _Found | None:
    if (job.failure or "").startswith("DeadlineExceeded"):
        return _status(
            FailureCode.DEADLINE_EXCEEDED, stage, f"Job {job.name} was ended by its deadline ({job.failure})"
        )
    for pod in failing:
        if pod.reason == "DeadlineExceeded":
            message = f"Pod {pod.name} was ended by its deadline ({pod.reason}: {pod.text or ''})"
            return _status(FailureCode.DEADLINE_EXCEEDED, stage, message, pod)
    return None


def _evicted_for_own_usage(pods: Sequence[PodView], stage: Stage) -> _Found | None:
    for pod in sorted(pods, key=_when):
        if (usage := _own_usage(pod, stage)) is not None:
            return _status(usage.code, stage, usage.message, pod, remedy=usage.remedy)
    return None


def _disruption(
    job: JobView,
    pods: Sequence[PodView],
    failing: Sequence[PodView],
    stage: Stage,
    now: float,
    nodes: Mapping[str, NodeView],
) -> _Found | None:
    for pod in pods:
        where = f" on node {pod.node}" if pod.node else ""
        why = f"{pod.reason}: {pod.text or ''}".rstrip(": ")
        if pod.disrupted is not None:
            return _status(FailureCode.EVICTED, stage, f"Pod {pod.name} was disrupted{where}: {pod.disrupted}", pod)
        if _never_started(pod) and pod.reason:
            return _status(FailureCode.POD_REJECTED, stage, f"Pod {pod.name} was rejected{where}: {why}", pod)
        if pod.reason and _ENDED_BY_CLUSTER.fullmatch(pod.reason):
            return _status(FailureCode.EVICTED, stage, f"Pod {pod.name} was ended by the cluster{where}: {why}", pod)
        if pod.ended is not None and (pod.ended.exit_code, pod.ended.reason) in _END_NOT_OBSERVED:
            message = f"The end of pod {pod.name}{where} was not observed ({pod.ended.reason}): the node restarted or was removed"
            return _status(FailureCode.EVICTED, stage, message, pod)
        if is_lost(pod, now, nodes):
            lost = node_lost(stage, pod)
            return lost.kind, lost.failure
        if _deleted_by_somebody(pod, job, pods):
            return _status(FailureCode.EVICTED, stage, f"Pod {pod.name} was deleted{where}", pod)
    # The Job controller deletes the other pods of a Job that failed: one that is gone explains nothing where a rank does.
    explained = any(_exit_code(pod) not in _NO_CAUSE or _killed(pod) for pod in failing)
    if len({pod.index for pod in pods}) < job.pods and not explained:
        ended = f" (the Job ended with {job.failure})" if job.failure else ""
        return _status(FailureCode.EVICTED, stage, f"A pod of stage {stage} vanished while it ran{ended}")
    return None


def _other(job: JobView, failing: Sequence[PodView], stage: Stage) -> _Found:
    if not failing:
        message = f"The {stage} Job failed without a failing pod: {job.failure or 'no reason given'}"
        return _status(FailureCode.UNKNOWN, stage, message, remedy=f"Check the Job: kubectl describe job {job.name}")
    # Survivors may notice that a peer is gone before its own pod reports why.
    pod = next((pod for pod in failing if _exit_code(pod) != ExitCode.PEER_LOST), failing[0])
    if _exit_code(pod) == ExitCode.PEER_LOST:
        return _of_trainer(pod, stage, FailureCode.PEER_LOST)
    if pod.ended is None or _exit_code(pod) == 0:
        return _of_other_container(pod, stage)
    if pod.ended.message is None:
        return _by_exit(pod, stage)
    return _of_trainer(pod, stage, FailureCode.UNKNOWN)


def _of_trainer(pod: PodView, stage: Stage, code: FailureCode) -> _Found:
    """What the trainer reported; `code` and its remedy where it reported nothing."""
    message = _message(pod)
    kind = FAILURES[code].kind
    if message is None or message.cause is None:
        exit_code = pod.ended.exit_code if pod.ended is not None else None
        how = "ran out of memory" if code == FailureCode.OUT_OF_MEMORY else f"ended with exit code {exit_code}"
        reason = f" ({pod.ended.reason})" if pod.ended is not None and pod.ended.reason else ""
        text = f"Pod {pod.name} of stage {stage} {how}{reason}{_last_line(pod)}"
        return kind, _status(code, stage, text, pod)[1]
    cause = message.cause
    shown, text = known_code(cause.code), cause.message
    if shown != cause.code:
        text = f"{text} (code {cause.code[:_LONGEST_CODE]!r} of the trainer image)"
    of_code = FAILURES[FailureCode(shown)] if shown in FAILURES and shown == cause.code else FAILURES[code]
    remedy = cause.remedy or of_code.advice(stage=stage, pod=pod.name, node=pod.node)
    return kind, _failure(shown, kind, stage, text, pod, remedy)


def _of_other_container(pod: PodView, stage: Stage) -> _Found:
    """The trainer did not start, or ended well, and the pod failed: another container did."""
    failed = [other for other in pod.others if other.state == "failed"]
    other = (
        next((o for o in failed if o.init), next(iter(failed), None)) if pod.ended is None else next(iter(failed), None)
    )
    if other is None:
        why = f"{pod.reason or 'no reason given'} {pod.text or ''}".rstrip()
        return _status(FailureCode.UNKNOWN, stage, f"Pod {pod.name} of stage {stage} failed: {why}", pod)
    code = FailureCode.INIT_CONTAINER_FAILED if other.init else FailureCode.CONTAINER_FAILED
    what = "Init container" if other.init else "Container"
    message = f"{what} {other.name} of pod {pod.name} {_ended_how(other.exit_code, other.reason)}{_text_of(other)}"
    remedy = FAILURES[code].advice(stage=stage, pod=pod.name, container=other.name, node=pod.node)
    return _status(code, stage, message, pod, remedy=remedy, exit_code=other.exit_code)


def _by_exit(pod: PodView, stage: Stage) -> _Found:
    """A trainer that left no message: its exit code, the kubelet's reason and the end of its log are all there is."""
    assert pod.ended is not None
    code, reason, text = pod.ended.exit_code, pod.ended.reason, pod.ended.text
    if "exec format error" in text:
        message = f"The image {pod.image} of pod {pod.name} cannot run on node {pod.node}: exec format error"
        return _status(FailureCode.WRONG_ARCHITECTURE, stage, message, pod)
    if reason in ("StartError", "ContainerCannotRun", "CreateContainerError", "RunContainerError"):
        message = f"The trainer of pod {pod.name} could not be started ({reason}): {_one_line(text)}"
        return _status(FailureCode.START_FAILED, stage, message, pod)
    if code == 128 + signal.SIGKILL:
        message = (
            f"The trainer of pod {pod.name} was killed with SIGKILL, not for its own memory limit{_last_line(pod)}"
        )
        return _status(FailureCode.KILLED, stage, message, pod)
    message = f"Pod {pod.name} of stage {stage} {_ended_how(code, reason)}{_last_line(pod)}"
    return _status(FailureCode.UNKNOWN, stage, message, pod)


def _status(
    code: FailureCode,
    stage: Stage,
    message: str,
    pod: PodView | None = None,
    *,
    remedy: str | None = None,
    exit_code: int | None = None,
) -> _Found:
    failure = FAILURES[code]
    if remedy is None:
        remedy = failure.advice(stage=stage, pod=pod.name if pod else "POD", node=pod.node if pod else None)
    return failure.kind, _failure(str(code), failure.kind, stage, message, pod, remedy, exit_code)


def _failure(
    code: str,
    kind: FailureKind,
    stage: Stage,
    text: str,
    pod: PodView | None,
    remedy: str | None,
    exit_code: int | None = None,
) -> FailureStatus:
    message = None if pod is None else _message(pod)
    if exit_code is None and pod is not None and kind != "evicted":
        exit_code = _exit_code(pod)
    return FailureStatus(
        code=code,
        stage=stage,
        rank=message.rank if message is not None else pod.index if pod is not None else None,
        node=None if pod is None else pod.node,
        exit_code=exit_code,
        message=_sentence(redact(text)[:_LONGEST_MESSAGE]),
        remedy=_sentence(redact(remedy)[:_LONGEST_REMEDY]) if remedy else None,
        retriable=kind != "fatal",
        stacks=None if message is None or message.stacks is None else redact(message.stacks)[:_LONGEST_REMEDY],
    )


def _sentence(text: str) -> str:
    """Begin with a capital letter, unless the first word is a field or a file."""
    return text[:1].upper() + text[1:] if re.match(r"[a-z]+[ ,]", text) else text


# What a pod shows.


def _since_release(job: JobView, pods: Sequence[PodView]) -> Sequence[PodView]:
    """Without the pods that an earlier suspension of the same Job stopped: what ended those has passed."""
    return [pod for pod in pods if pod.created >= (job.released or 0.0)] or pods


def _message(pod: PodView) -> TerminationMessage | None:
    return pod.ended.message if pod.ended is not None else None


def _exit_code(pod: PodView) -> int | None:
    """The trainer's own report first: launchers mask the codes of their children."""
    message = _message(pod)
    if message is not None and message.outcome == "failed":
        return message.exit_code
    return pod.ended.exit_code if pod.ended is not None else None


def _failed(pod: PodView) -> bool:
    if pod.phase == "Failed":
        return _exit_code(pod) != ExitCode.STOPPED
    return pod.ended is not None and _exit_code(pod) not in (0, ExitCode.STOPPED)


def _never_started(pod: PodView) -> bool:
    """The kubelet ended it at admission, whatever the reason. A deadline ends pods at any time."""
    return (
        pod.phase == "Failed"
        and pod.ended is None
        and pod.running_since is None
        and not pod.others
        and pod.reason != "DeadlineExceeded"
    )


def _when(pod: PodView) -> float:
    message = _message(pod)
    if message is not None and message.time:
        return message.time
    if pod.ended is not None and pod.ended.finished is not None:
        return pod.ended.finished
    return float("inf")


def _killed(pod: PodView) -> bool:
    """Whether it ended by a SIGKILL other than the one that ends the grace period of a deletion."""
    if pod.ended is None or _exit_code(pod) != 128 + signal.SIGKILL:
        return False
    asked, due, finished = pod.deletion_asked, pod.deletion_due, pod.ended.finished
    # When the kubelet lets a pod go, its grace period becomes 0, and both times the same.
    return asked is None or due is None or (finished is not None and (finished <= asked or finished < due))


def _deleted_by_somebody(pod: PodView, job: JobView, pods: Sequence[PodView]) -> bool:
    """The Job controller deletes the rest of a gang too, but only after the first failure. Both times are the servers' own, in
    whole seconds; within the same second a pod that failed by itself, not for want of a peer, decides."""
    failing = job.failing or job.failed
    if pod.deletion_asked is None or failing is None or pod.deletion_asked > failing:
        return False
    if pod.deletion_asked < failing:
        return True
    return not any(
        _killed(p) or (p.deletion_asked is None and _exit_code(p) != ExitCode.PEER_LOST) for p in pods if _failed(p)
    )


# The kubelet's texts: pkg/kubelet/eviction/{helpers,eviction_manager}.go.
_MORE_THAN_REQUESTED = re.compile(
    r"Container (?P<container>\S+) was using (?P<used>\S+), request is (?P<asked>[^\s,]+), has larger consumption of (?P<resource>[\w.-]+\w)"
)
_OWN_DISK_LIMIT = re.compile(
    r"Pod ephemeral local storage usage exceeds the total limit of containers|Container (?P<container>\S+) exceeded its local ephemeral storage limit"
)
_OWN_VOLUME = re.compile(r"Usage of EmptyDir volume \"(?P<volume>[^\"]+)\" exceeds the limit")


def _own_usage(pod: PodView, stage: Stage) -> _OwnUsage | None:
    if pod.reason != "Evicted" or not pod.text:
        return None
    resources = f"spec.pods.{stage}.resources"
    message = f"Pod {pod.name} was evicted for its own usage: {_one_line(pod.text)}"
    if (volume := _OWN_VOLUME.search(pod.text)) is not None:
        remedy = f"Raise sizeLimit of volume {volume['volume']} in spec.pods.{stage}.volumes"
        return _OwnUsage(FailureCode.STORAGE_FULL, message, remedy)
    if _OWN_DISK_LIMIT.search(pod.text) is not None:
        remedy = f"Raise {resources}.limits[ephemeral-storage], or keep less on the disk of the node"
        return _OwnUsage(FailureCode.STORAGE_FULL, message, remedy)
    over = [
        match
        for match in _MORE_THAN_REQUESTED.finditer(pod.text)
        if match["resource"] in ("memory", "ephemeral-storage")
    ]
    if not over:
        return None
    used = over[0]
    remedy = f"Raise {resources}.requests[{used['resource']}] from {used['asked']} to more than {used['used']}"
    code = FailureCode.HOST_MEMORY_EXCEEDED if used["resource"] == "memory" else FailureCode.STORAGE_FULL
    return _OwnUsage(code, message, remedy.replace("requests[memory]", "requests.memory"))


def _ended_how(exit_code: int, reason: str) -> str:
    name = ""
    if 128 < exit_code < 128 + signal.NSIG:
        try:
            name = f", {signal.Signals(exit_code - 128).name}"
        except ValueError:
            name = ""
    return f"ended with exit code {exit_code} ({reason or 'no reason given'}{name})"


def _last_line(pod: PodView) -> str:
    """The last line of the log, if the trainer left no message of its own. Secrets may span lines."""
    if pod.ended is None or pod.ended.message is not None:
        return ""
    lines = [line.strip() for line in redact(pod.ended.text).splitlines() if line.strip()]
    return f"; its log ends with: {lines[-1][:400]}" if lines else ""


def _text_of(other: OtherContainer) -> str:
    return f": {_one_line(other.text, 400)}" if other.text else ""


def _one_line(text: str, limit: int = 600) -> str:
    line = " ".join(redact(text).split()).rstrip(".")
    return line if len(line) <= limit else line[: limit - 1] + "…"
