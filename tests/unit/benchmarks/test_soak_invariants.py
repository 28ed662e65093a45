"""The soak run's observer: what it must report, and what it must not."""

from __future__ import annotations

from typing import Any, cast

import pytest

from benchmarks.operator.invariants import Observer

Event = tuple[str, dict[str, Any]]


def job(phase: str, generation: int = 1, token: str | None = None, attempts: tuple[tuple[str, str], ...] = ()) -> Event:
    body = {
        "metadata": {"name": "a", "uid": "u", "generation": generation},
        "spec": {"runToken": token},
        "status": {
            "phase": phase,
            "observedGeneration": generation,
            "attempts": [{"job": name, "outcome": outcome} for name, outcome in attempts],
        },
    }
    return ("MODIFIED", body)


def pod(attempt: int, phase: str, kind: str = "MODIFIED", node: str | None = "n", run: str = "r") -> Event:
    labels = {
        "finetune.dev/job-uid": "u",
        "finetune.dev/run": run,
        "finetune.dev/stage": "train",
        "finetune.dev/attempt": str(attempt),
    }
    name = f"a-{run}-train-{attempt}-0"
    body = {
        "metadata": {"name": name, "uid": name, "labels": labels},
        "spec": {"nodeName": node} if node else {},
        "status": {"phase": phase},
    }
    return (kind, body)


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([pod(1, "Running"), pod(2, "Running")], "ran at the same time"),
        ([pod(1, "Running"), pod(2, "Pending")], "ran at the same time"),
        ([pod(1, "Running"), pod(2, "Pending", node=None)], None),
        ([pod(1, "Running"), pod(1, "Failed"), pod(2, "Running")], None),
        ([pod(1, "Running"), pod(1, "Running", "DELETED"), pod(2, "Running")], None),
        ([pod(1, "Running"), pod(1, "Running", run="s")], None),
        ([job("Completed"), job("Training")], "terminal phase Completed became Training"),
        ([job("Failed"), job("Completed")], "terminal phase Failed became Completed"),
        ([job("Failed"), job("Preparing", 2, "again")], None),
        ([job("Failed"), ("DELETED", job("Failed")[1])], None),
        ([job("Training", attempts=(("a-r-train-1", "Failed"), ("a-r-train-1", "Failed")))], "recorded 2 times"),
        (
            [job("Training", attempts=(("a-r-train-1", "Succeeded"), ("a-r-train-2", "Succeeded")))],
            "stage a-r-train succeeded 2 times",
        ),
        ([job("Training", attempts=(("a-r-train-1", "Failed"), ("a-r-train-2", "Succeeded")))], None),
    ],
)
def test_observer_reports_exactly_what_is_broken(events: list[Event], expected: str | None) -> None:
    observer = Observer(cast(Any, None))
    for kind, body in events:
        (observer.take_pod if "labels" in body["metadata"] else observer.take_job)(kind, body)
    if expected is None:
        assert not observer.violations
    else:
        assert len(observer.violations) == 1
        assert expected in next(iter(observer.violations))
