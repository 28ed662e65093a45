"""What a status that was just written says about jobs as a whole."""

from __future__ import annotations

from typing import Any

from finetune_api.status import FineTuneJobStatus

from finetune_operator.domain.times import seconds_of
from finetune_operator.telemetry import metrics


def measure(before: dict[str, Any], status: FineTuneJobStatus, now: float) -> None:
    """Count ends, restarts and waits. `before` is the status as it was, `now` in seconds since 1970."""
    phase = before.get("phase")
    if status.phase in ("Completed", "Failed") and phase != status.phase:
        metrics.jobs_completed.labels(status.phase.lower(), status.reason or "").inc()
    known = {a["job"]: a.get("outcome") for a in before.get("attempts") or ()}
    for attempt in status.attempts or ():
        if attempt.outcome in ("Evicted", "Failed", "Stopped") and known.get(attempt.job) == "Running":
            if status.phase != "Failed":
                metrics.restarts.labels(attempt.reason or attempt.outcome).inc()
    if status.phase == "Training" and phase != "Training":
        begun = seconds_of(next((a.started for a in reversed(status.attempts or []) if a.stage == "train"), None))
        if begun is not None:
            metrics.running_seconds.observe(max(0.0, now - begun))
