"""Metrics of jobs, from a status that was just written."""

from __future__ import annotations

from typing import Any

from finetune_api.failures import FailureCode
from finetune_api.reasons import Reason
from finetune_api.status import AttemptStatus, FineTuneJobStatus

from finetune_operator.domain.times import seconds_of
from finetune_operator.telemetry import metrics

_KNOWN = frozenset(map(str, (*Reason, *FailureCode)))
_OTHER = "Other"


def closed(word: str | None) -> str:
    """A label value of a fixed set: a pod can report any text as its cause."""
    return word if word in _KNOWN else _OTHER


def measure(before: dict[str, Any], status: FineTuneJobStatus, now: float) -> None:
    """Count ends, retries and waits. `before` is the status as it was, `now` in seconds since 1970."""
    phase = before.get("phase")
    if status.phase in ("Completed", "Failed") and phase != status.phase:
        metrics.jobs_completed.labels(status.phase.lower(), closed(status.reason)).inc()
    known = {attempt["job"]: attempt for attempt in before.get("attempts") or ()}
    last_end = seconds_of(status.start_time)
    for attempt in status.attempts or ():
        _measure_attempt(known.get(attempt.job, {}), attempt, status, last_end)
        last_end = seconds_of(attempt.finished)
    if status.phase == "Training" and phase != "Training":
        started = seconds_of(next((a.started for a in reversed(status.attempts or []) if a.stage == "train"), None))
        if started is not None:
            metrics.running_seconds.observe(max(0.0, now - started))


def _measure_attempt(
    before: dict[str, Any], attempt: AttemptStatus, status: FineTuneJobStatus, last_end: float | None
) -> None:
    started, finished = seconds_of(attempt.started), seconds_of(attempt.finished)
    trains = attempt.stage == "train"
    if trains and started is not None and last_end is not None and before.get("started") is None:
        metrics.queue_wait.observe(max(0.0, started - last_end))
    metrics.steps_lost.inc(max(0, (attempt.steps_lost or 0) - (before.get("stepsLost") or 0)))
    if attempt.outcome == "Running" or before.get("outcome", "Running") != "Running":
        return
    if trains and started is not None and finished is not None:
        metrics.gpu_seconds.labels(attempt.outcome).inc(max(0.0, finished - started) * (status.gpus or 0))
    if before and attempt.outcome != "Succeeded" and status.phase != "Failed":
        metrics.retries.labels(closed(attempt.reason or attempt.outcome)).inc()
