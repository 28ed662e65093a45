"""`ftj describe`: one picture of a job, whoever wrote its status."""

from __future__ import annotations

import io
from typing import Any

import pytest
from finetune_api.finetunejob import FineTuneJob
from finetune_api.operator_state import OperatorState
from finetune_api.planner.ladder import Notch
from finetune_cli.describe import show
from rich.console import Console

from .conftest import Job

NOW = 1767229200.0  # 2026-01-01T01:00:00Z
NOTCH = Notch(
    kind="gpu",
    field="compute.microBatchTokens",
    before="16384",
    after="8192",
    change={"compute": {"microBatchTokens": 8192}},
    sentence="compute.microBatchTokens is changed from 16384 to 8192",
)
STATE = OperatorState(
    effective={"budget": {"gpuHourPrice": 2.0}}, notches=[NOTCH], running_since="2026-01-01T00:30:00Z"
).encode()
TRAINING: dict[str, Any] = {
    "phase": "Training",
    "reason": "Training",
    "message": "Training on 2 nodes",
    "startTime": "2026-01-01T00:00:00Z",
    "gpus": 4,
    "conditions": [
        {"type": kind, "status": value, "reason": "R", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        for kind, value in (("Ready", "True"), ("PlanAccepted", "True"), ("Suspended", "False"))
    ],
    "plan": {"steps": 150, "choices": [{"field": "training.learningRate", "value": "0.0002", "why": "usual for lora"}]},
    "progress": {"stage": "train", "summary": "42% 63/150", "loss": 1.23456, "eta": "3m12s"},
    "lastCheckpoint": {"step": 60, "path": "pvc://scratch/u-1/a/checkpoints/step-60"},
    "attempts": [
        {"stage": "prepare", "number": 1, "job": "a", "outcome": "Succeeded", "started": "2026-01-01T00:00:00Z", "finished": "2026-01-01T00:03:00Z"},
        {"stage": "train", "number": 1, "job": "b", "outcome": "Failed", "reason": "OutOfMemory", "node": "n-1", "lastStep": 47, "stepsLost": 7, "message": f"Rank 0 ran out of memory. {NOTCH.sentence}"},
        {"stage": "train", "number": 2, "job": "c", "outcome": "Running", "resumedFromStep": 40, "lastStep": 63, "started": "2026-01-01T00:30:00Z"},
    ],
    "usage": {"trainSeconds": 1800, "gpuSeconds": 7200, "cost": 4.0},
    "state": STATE,
}  # fmt: skip


def event(second: int, message: str, **fields: Any) -> dict[str, Any]:
    created = f"2026-01-01T00:59:{second:02d}Z"
    return {"metadata": {"creationTimestamp": created}, "type": "Normal", "reason": "R", "message": message, **fields}


def described(job: FineTuneJob, events: list[dict[str, Any]] | str = "") -> list[list[str]]:
    """The words of each line."""
    out = io.StringIO()
    show(Console(file=out, width=160, highlight=False, markup=False, soft_wrap=True), job, events, NOW)
    return [line.split() for line in out.getvalue().splitlines() if line.strip()]


@pytest.mark.parametrize(
    "line",
    [
        "team-a/bot: lora on pvc://models/base, 2 pods",
        "Phase Training, for 1h",
        "Message Training on 2 nodes",
        "Conditions True: Ready, PlanAccepted; False: Suspended",
        "Progress train 42% 63/150, loss 1.235, 3m12s left",
        "Checkpoint step 60 in pvc://scratch/u-1/a/checkpoints/step-60",
        "Steps 150",
        "training.learningRate 0.0002 usual for lora",
        "prepare 1 Succeeded 3m",
        "train 1 Failed OutOfMemory n-1 0-47 7 compute.microBatchTokens 16384 -> 8192",
        "train 2 Running 30m 40-63",
        "Usage training ran 1h, 4 GPU hours, cost 8.00",  # with what runs since 00:30
        "none; the cluster deletes events after a while",
    ],
)
def test_a_job_that_trains(job: Job, line: str) -> None:
    assert line.split() in described(job(**TRAINING), [])


@pytest.mark.parametrize(
    ("status", "line"),
    [
        ({"observedGeneration": 0}, "The operator has not reconciled this version of the spec yet."),
        ({"trainSeconds": 3600, "gpuSeconds": 7200}, "Usage training ran 1h, 2 GPU hours"),  # as version 0.1 wrote it
        ({"state": "of another version", "usage": {"trainSeconds": 60}}, "Usage training ran 1m"),
        (
            {"failure": {"code": "Hang", "stage": "train", "rank": 0, "node": "n-2", "exitCode": 7, "message": "x"}},
            "Failure Hang, stage train, rank 0, node n-2, exit code 7",
        ),
    ],
)
def test_other_statuses(job: Job, status: dict[str, Any], line: str) -> None:
    assert line.split() in described(job(**status))


def test_the_latest_ten_events_are_shown_in_order_with_nothing_that_a_terminal_obeys(job: Job) -> None:
    events = [event(second, f"message {second}") for second in range(12, 0, -1)]
    events.append(event(0, "again\x1b[31m", series={"lastObservedTime": "2026-01-01T00:59:30.5Z"}))
    shown = [line for line in described(job(), events) if line[1:3] == ["Normal", "R"]]
    assert [line[-1] for line in shown] == [*map(str, range(4, 13)), "again�[31m"]
    assert shown[0][0] == "56s"


def test_events_that_cannot_be_read_are_explained(job: Job) -> None:
    assert described(job(), "forbidden")[-1] == ["not", "shown:", "forbidden"]
