"""Where an attempt stands, read from its Job and pods alone: a closed list, so that every combination can be enumerated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum

from finetune_api.contract import ExitCode
from finetune_api.status import AttemptStatus

from finetune_operator.domain.diagnosis.failures import is_lost
from finetune_operator.domain.observed import JobView, NodeView, PodView

SIDECAR_S = 30.0
"""How long a pod may run on after its trainer ended before its other containers are ignored."""


class Standing(StrEnum):
    NOT_CREATED = "NotCreated"
    """There is no Job, and no pod ever ran."""
    VANISHED = "Vanished"
    """Pods ran; Job and pods are gone."""
    QUEUED = "Queued"
    """Suspended by a queue or a person: not ours to release."""
    HELD = "Held"
    """Suspended by this operator, and no pod runs."""
    STARTING = "Starting"
    """Released; not every rank runs."""
    RUNNING = "Running"
    STOPPING = "Stopping"
    """Suspended, deleted or gone, and pods still run."""
    STOPPED = "Stopped"
    """Every pod ended after saving a checkpoint (exit 5), or well."""
    NODE_LOST = "NodeLost"
    """A pod's node does not answer any more."""
    FAILING = "Failing"
    """A rank failed; others still end."""
    FAILED = "Failed"
    COMPLETE = "Complete"


def classify(
    attempt: AttemptStatus,
    job: JobView | None,
    pods: Sequence[PodView],
    now: float,
    nodes: Mapping[str, NodeView] | None = None,
) -> Standing:
    """`pods` are those of the attempt, whichever Job they belonged to; `nodes` those that were read; `now` in seconds since
    1970."""
    live = [pod for pod in pods if not has_ended(pod, now)]
    lost = [pod for pod in live if is_lost(pod, now, nodes)]
    if job is None:
        if len(live) > len(lost):
            return Standing.STOPPING
        if lost:
            return Standing.NODE_LOST
        return Standing.VANISHED if attempt.started is not None else Standing.NOT_CREATED
    if job.complete is not None:
        return Standing.COMPLETE
    if job.failed is not None or (job.failing is not None and not live):
        return Standing.FAILED
    if lost:
        return Standing.NODE_LOST
    if job.failing is not None:
        return Standing.FAILING
    if job.deleting:
        return Standing.STOPPING
    if job.suspended:
        if live:
            return Standing.STOPPING
        return Standing.HELD if job.held and not job.managed_elsewhere else Standing.QUEUED
    return _released(job, pods, now)


def _released(job: JobView, pods: Sequence[PodView], now: float) -> Standing:
    if len(running_ranks(pods)) >= job.pods and not any(_held_by_sidecar(pod, now) for pod in pods):
        return Standing.RUNNING
    current = since_release(job, pods)
    ended = [pod for pod in current if has_ended(pod, now)]
    codes = {pod.ended.exit_code if pod.ended is not None else None for pod in ended}
    if len(ended) == len(current):
        # The Job controller does not see an end that a sidecar hides.
        if any(_held_by_sidecar(pod, now) for pod in ended):
            if any(failed(pod) for pod in ended):
                return Standing.FAILED
            if codes == {0} and len({pod.index for pod in ended}) >= job.pods:
                return Standing.COMPLETE
        # It would create pods that exited with 5 again, but only after 10 seconds, doubled for each pod that ended: ten minutes
        # for a gang of seven. A new attempt starts at once.
        if not job.managed_elsewhere and ExitCode.STOPPED in codes and codes <= {0, ExitCode.STOPPED}:
            return Standing.STOPPED
    # A container's end is seen before its pod's.
    return Standing.FAILING if any(failed(pod) for pod in current) else Standing.STARTING


def has_ended(pod: PodView, now: float) -> bool:
    """Whether nothing of the trainer runs in the pod any more."""
    return pod.over or _held_by_sidecar(pod, now)


def _held_by_sidecar(pod: PodView, now: float) -> bool:
    """The trainer ended a while ago, and another container keeps the pod running."""
    ended = pod.ended
    return not pod.over and ended is not None and ended.finished is not None and now - ended.finished > SIDECAR_S


def kept_running(pods: Sequence[PodView], now: float) -> str | None:
    """One sentence about a pod that other containers kept running after its trainer ended."""
    for pod in pods:
        if _held_by_sidecar(pod, now) and pod.still_running:
            return (
                f"Container {', '.join(pod.still_running)} kept pod {pod.name} running after its trainer ended, "
                "so the operator ended the pod"
            )
    return None


def failed(pod: PodView) -> bool:
    """Whether the end of a pod fails its Job, by the Job's podFailurePolicy and backoffLimit."""
    if pod.ended is None:
        return pod.phase == "Failed"
    return pod.ended.exit_code not in (0, ExitCode.STOPPED)


def since_release(job: JobView, pods: Sequence[PodView]) -> list[PodView]:
    """The pods that were created since the Job was released. Those of before a suspension may still be there when it is lifted."""
    return [pod for pod in pods if job.released is not None and pod.created >= job.released]


def live(pods: Sequence[PodView]) -> list[PodView]:
    """Pods that run or will, and were not asked to stop."""
    return [pod for pod in pods if not pod.over and pod.deletion_asked is None]


def finished_ranks(pods: Sequence[PodView]) -> set[int]:
    """Ranks whose trainer succeeded, also where the pod's phase follows a moment later."""
    return {pod.index for pod in pods if pod.phase == "Succeeded" or (pod.ended and pod.ended.exit_code == 0)}


def running_ranks(pods: Sequence[PodView]) -> set[int]:
    """Ranks that run or have succeeded."""
    return {pod.index for pod in live(pods) if pod.running} | finished_ranks(pods)
