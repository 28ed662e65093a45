"""How long the pods of a training ran, all of them: what the book says, and what is to be added.

It is read from the condition Running and from what Jobs and pods say of themselves, not from when somebody looked: an operator
that was away bills no hours in which nothing ran, and forgets none in which the training did.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from finetune_api.status import Condition, FineTuneJobStatus

from finetune_operator.domain.attempts.history import latest
from finetune_operator.domain.observed import JobView, PodView
from finetune_operator.domain.plan_builder import PlanBuilder
from finetune_operator.domain.times import seconds_of, stamp


@dataclass(frozen=True, slots=True)
class Spent:
    """Over all attempts of this run, up to now."""

    seconds: float
    gpu_seconds: float


@dataclass(frozen=True, slots=True)
class Stretch:
    """In which every pod of a training ran. `over`: one of them runs no more."""

    since: float
    until: float
    over: bool

    @property
    def seconds(self) -> float:
        return max(0.0, self.until - self.since)


def spent(builder: PlanBuilder) -> Spent:
    status = builder.status
    now = sum(stretch.seconds for stretch in (told(builder), found(builder)) if stretch is not None)
    return Spent(
        seconds=(status.train_seconds or 0) + now,
        gpu_seconds=(status.gpu_seconds or 0) + now * (builder.before.gpus or 0),
    )


def told(builder: PlanBuilder) -> Stretch | None:
    """The stretch that the status says is under way. It ended when the first of its pods did."""
    running = _running(builder.before)
    since = None if running is None else seconds_of(running.last_transition_time)
    if since is None or builder.before.phase != "Training" or running is None or running.status != "True":
        return None
    job = _job(builder)
    ends = [] if job is None else [at for at in _ends(job, builder.observed.pods.get(job.name, ())) if at > since]
    return Stretch(since, min([builder.now, *ends]), over=bool(ends))


def found(builder: PlanBuilder) -> Stretch | None:
    """A stretch that the status does not know yet: the newest pods of all ranks run, or did."""
    job, before = _job(builder), told(builder)
    if job is None or job.suspended or job.deleting or (before is not None and not before.over):
        return None
    newest = {pod.index: pod for pod in sorted(builder.observed.pods.get(job.name, ()), key=lambda pod: pod.created)}
    starts = [at for pod in newest.values() if (at := pod.running_since or (pod.ended and pod.ended.started))]
    if len(starts) < job.pods:
        return None
    running = _running(builder.before)
    counted = before.until if before is not None else seconds_of(running.last_transition_time) if running else None
    since = max([*starts, counted or 0.0])
    ends = list(_ends(job, newest.values()))
    until = min([builder.now, *ends])
    return Stretch(since, until, over=bool(ends)) if since < until else None


def count(builder: PlanBuilder) -> None:
    """Add what has ended to the book, and let the condition Running say since when the rest runs: nothing is counted twice.

    Called when phase and conditions are what they will be."""
    status, running = builder.status, _running(builder.status)
    known, new = told(builder), found(builder)
    runs = status.phase == "Training" and running is not None and running.status == "True"
    going_on = (new or known) if runs else None
    ended = [stretch for stretch in (known, new) if stretch is not None and stretch is not going_on]
    if running is not None and going_on is not None:
        running.last_transition_time = stamp(going_on.since)
    elif running is not None and new is not None:
        running.last_transition_time = stamp(builder.now)
    # Upwards: a budget that was seen to be spent must be so in the book too, or the pods would start again for the rest.
    if seconds := sum(stretch.seconds for stretch in ended):
        status.train_seconds = (status.train_seconds or 0) + math.ceil(seconds)
        if builder.before.gpus:
            status.gpu_seconds = (status.gpu_seconds or 0) + math.ceil(builder.before.gpus * seconds)


def _running(status: FineTuneJobStatus) -> Condition | None:
    return next((c for c in status.conditions or [] if c.type == "Running"), None)


def _job(builder: PlanBuilder) -> JobView | None:
    """Of the attempt at the training that is under way: what is left of earlier ones may end at any time."""
    entry = latest(builder.before.attempts or [], "train")
    return builder.observed.jobs.get(entry.job) if entry is not None and entry.outcome == "Running" else None


def _ends(job: JobView, pods: Iterable[PodView]) -> Iterator[float]:
    """When not every pod of a Job ran any more."""
    for at in (job.complete, job.failing, job.failed, job.suspended_since, *map(_end, pods)):
        if at is not None:
            yield at


def _end(pod: PodView) -> float | None:
    """When this pod, or the one that it stands in for, stopped running, or was told to."""
    if pod.ended is not None:
        return pod.ended.finished
    return pod.deletion_asked if pod.running else pod.created
