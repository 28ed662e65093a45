"""How long all pods of a training ran: what status.usage holds, and what is to be added.

It is read from Jobs and pods, not from the times of reconciles: an operator that was away bills no hours in which nothing ran,
and forgets none in which the training did.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

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
    used = builder.status.used
    now = sum(stretch.seconds for stretch in (recorded(builder), found(builder)) if stretch is not None)
    return Spent(
        seconds=(used.train_seconds or 0) + now,
        gpu_seconds=(used.gpu_seconds or 0) + now * (builder.before.gpus or 0),
    )


def recorded(builder: PlanBuilder) -> Stretch | None:
    """The stretch that the state has as under way. It ended when the first of its pods did."""
    since = seconds_of(builder.state.running_since)
    if since is None:
        return None
    job = _job(builder)
    ends = [] if job is None else [at for at in _ends(job, builder.observed.pods.get(job.name, ())) if at > since]
    return Stretch(since, min([builder.now, *ends]), over=bool(ends))


def found(builder: PlanBuilder) -> Stretch | None:
    """A stretch that the state does not have yet: the newest pods of all ranks run, or did."""
    job, before = _job(builder), recorded(builder)
    if job is None or job.suspended or job.deleting or (before is not None and not before.over):
        return None
    newest = {pod.index: pod for pod in sorted(builder.observed.pods.get(job.name, ()), key=lambda pod: pod.created)}
    starts = [at for pod in newest.values() if (at := pod.running_since or (pod.ended and pod.ended.started))]
    if len(starts) < job.pods:
        return None
    counted = before.until if before is not None else seconds_of(builder.state.counted_until)
    since = max([*starts, counted or 0.0])
    ends = list(_ends(job, newest.values()))
    until = min([builder.now, *ends])
    return Stretch(since, until, over=bool(ends)) if since < until else None


def count(builder: PlanBuilder) -> None:
    """Add what has ended to status.usage, and record since when the rest runs: nothing is counted twice."""
    job_state, state = builder.job_state, builder.state
    known, new = recorded(builder), found(builder)
    runs = job_state is not None and job_state.phase == "Training" and job_state.running
    current = (new or known) if runs else None
    ended = [stretch for stretch in (known, new) if stretch is not None and stretch is not current]
    state.running_since = stamp(current.since if current is not None else builder.now) if runs else None
    if ended:
        state.counted_until = stamp(math.ceil(max(stretch.until for stretch in ended)))
    # Upwards: a budget that was found to be used up must be so in the status too, or the pods would start again for the rest.
    if seconds := sum(stretch.seconds for stretch in ended):
        used, gpus = builder.status.used.model_copy(), builder.before.gpus or 0
        used.train_seconds = (used.train_seconds or 0) + math.ceil(seconds)
        if gpus:
            used.gpu_seconds = (used.gpu_seconds or 0) + math.ceil(gpus * seconds)
            if price := builder.spec.budget.gpu_hour_price:
                used.cost = round(used.gpu_seconds / 3600 * price, 2)
        builder.status.usage = used
        # After a rollback, whose CRD prunes `usage`, version 0.1 continues from these, and so does the next upgrade.
        builder.status.train_seconds, builder.status.gpu_seconds = used.train_seconds, used.gpu_seconds


def _job(builder: PlanBuilder) -> JobView | None:
    """Of the attempt at the training that is under way: what is left of earlier ones may end at any time."""
    attempt = latest(builder.before.attempts or [], "train")
    return builder.observed.jobs.get(attempt.job) if attempt is not None and attempt.outcome == "Running" else None


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
