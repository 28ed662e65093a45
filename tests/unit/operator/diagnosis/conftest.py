"""Jobs and pods as the API server returns them."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.domain.observed import JobView, PodView
from finetune_operator.domain.times import stamp

NOW = 1_800_000_000.0


def pod_body(index: int = 0, *, spec: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    """A pod with this status that was created a minute ago and has a node."""
    return {
        "metadata": {
            "name": f"bot-train-1-{index}-abcde",
            "namespace": "team",
            "uid": f"p-{index}",
            "creationTimestamp": stamp(NOW - 60),
            "labels": {"batch.kubernetes.io/job-completion-index": str(index), "finetune.dev/job-uid": "u-1"},
        },
        "spec": {"nodeName": "n1", "schedulerName": "default-scheduler"} | (spec or {}),
        "status": status,
    }


def terminated(code: int, reason: str = "Error", message: str = "") -> dict[str, Any]:
    return {
        "name": "trainer",
        "image": "trainer:1",
        "state": {"terminated": {"exitCode": code, "reason": reason, "message": message, "startedAt": stamp(NOW - 50), "finishedAt": stamp(NOW - 5)}},
    }  # fmt: skip


def waiting(reason: str = "ContainerCreating", message: str = "", name: str = "trainer") -> dict[str, Any]:
    return {"name": name, "image": "trainer:1", "state": {"waiting": {"reason": reason, "message": message}}}


def condition(kind: str, status: str, reason: str = "", message: str = "", ago: float = 60) -> dict[str, Any]:
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": stamp(NOW - ago),
    }


def job_body(pods: int = 1, failure: tuple[str, str] | None = None) -> dict[str, Any]:
    conditions = [condition("Suspended", "False", "JobResumed", ago=60)]
    if failure is not None:
        conditions += [condition(kind, "True", *failure, ago=2) for kind in ("FailureTarget", "Failed")]
    return {
        "metadata": {"name": "bot-train-1", "namespace": "team", "uid": "j-1", "creationTimestamp": stamp(NOW - 60)},
        "spec": {"completions": pods},
        "status": {"conditions": conditions},
    }


@pytest.fixture
def failed_job() -> JobView:
    return JobView.of(job_body(1, ("BackoffLimitExceeded", "Job has reached the specified backoff limit")))


def pod(index: int = 0, **status: Any) -> PodView:
    return PodView.of(pod_body(index, **status))
