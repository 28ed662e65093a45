"""What is reported of a job: each thing once, and never of a spec that was not reconciled yet."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_cli import view
from finetune_cli.errors import Exit
from finetune_cli.stages import stages
from finetune_cli.text import bytes_size, duration

from .conftest import Job

DATA = {"rows": 1000, "trainRows": 800, "validationRows": 100, "testRows": 100, "invalidRows": 3}
PLAN = {"steps": 150, "epochs": 3, "globalBatchSize": 16, "tokens": 120000}


def attempt(stage: str, number: int = 1, outcome: str = "Running", **fields: Any) -> dict[str, Any]:
    return {"stage": stage, "number": number, "job": f"bot-{stage}-{number}", "outcome": outcome, **fields}


def condition(kind: str) -> list[dict[str, Any]]:
    return [{"type": kind, "status": "True", "reason": "R", "lastTransitionTime": "2026-01-01T00:00:00Z"}]


def test_a_status_of_another_generation_is_no_end(job: Job) -> None:
    """After a changed runToken the old end still stands there until the operator has looked."""
    done: dict[str, Any] = {"phase": "Completed", "conditions": condition("Complete")}
    assert view.end(job(**done)) == view.End(True, "bot completed.", Exit.DONE)
    assert view.end(job(**done, observedGeneration=0)) is None
    assert view.news(None, job(**done, data=DATA, observedGeneration=0)) == []


def test_a_newer_operator_may_say_more(body: dict[str, Any]) -> None:
    body["spec"]["later"] = 1
    body["status"] = {"observedGeneration": 1, "phase": "Training", "later": {"x": 1}}
    assert view.parse(body).status.phase == "Training"


@pytest.mark.parametrize(
    ("failure", "sentence"),
    [
        (
            {
                "code": "InvalidData",
                "stage": "prepare",
                "message": "a.jsonl, line 7: not JSON",
                "remedy": "Correct the line.",
            },
            "bot Failed in prepare: a.jsonl, line 7: not JSON. Correct the line.",
        ),
        (
            {"code": "Diverged", "stage": "train", "rank": 1, "node": "n-2", "message": "loss became\nNaN at step 7"},
            "bot Failed in train, rank 1 on n-2: loss became NaN at step 7.",
        ),
        (None, "bot Failed: the operator gave no reason"),
    ],
)
def test_a_failure_is_one_sentence_with_its_remedy(job: Job, failure: Any, sentence: str) -> None:
    ended = view.end(job(phase="Failed", **({"failure": failure} if failure else {})))
    assert ended == view.End(False, sentence, Exit.FAILED)


def test_how_long_it_took(job: Job) -> None:
    ended = view.end(job(phase="Completed", startTime="2026-01-01T00:00:00Z", completionTime="2026-01-01T01:02:03Z"))
    assert ended
    assert ended.sentence == "bot completed in 1h2m."


def test_the_story_of_a_job_is_told_once(job: Job) -> None:
    """Every change of a run with an eviction and a pull problem, in order; what has not changed is not repeated, nor when the
    spec was edited. Another run's story is its own."""
    story: list[dict[str, Any]] = [
        {},
        {"run": "a"},
        {"phase": "Preparing", "reason": "ImagePullFailed", "message": "The image x cannot be pulled. Correct it"},
        {"phase": "Preparing", "reason": "Preparing", "message": "Reading and checking the data"},
        {"phase": "Queued", "data": DATA, "plan": PLAN, "attempts": [attempt("prepare", outcome="Succeeded"), attempt("train")]},
        {"phase": "Training", "attempts": [attempt("train", lastStep=40)]},
        {"attempts": [attempt("train", outcome="Evicted", lastStep=50, message="Pod bot-0 was deleted")]},
        {"attempts": [attempt("train", outcome="Evicted", lastStep=50, message="Pod bot-0 was deleted"), attempt("train", 2)]},
        {"attempts": [attempt("train", outcome="Evicted"), attempt("train", 2, resumedFromStep=40)]},
        {"phase": "Suspended", "reason": "Suspended", "message": "Suspended in stage train; spec.suspend: false goes on"},
        {"observedGeneration": 0},
        {"observedGeneration": 1, "phase": "Training", "reason": "Training", "message": "Training on 2 nodes"},
        {"run": "b", "attempts": []},
    ]  # fmt: skip
    said, status, before = [], {}, None
    for change in story:
        status = {**status, **change}
        for _ in range(2):  # the same status twice: a watch repeats itself
            now = job(**status)
            said += view.news(before, now)
            before = view.last_told(before, now)
    assert said == [
        "The image x cannot be pulled. Correct it.",
        "Reading and checking the data.",
        "1,000 rows: 800 train, 100 validation, 100 test; 3 invalid, left out.",
        "150 steps of 16 rows, 3 epochs, 120,000 tokens.",
        "train attempt 1 Evicted at step 50: Pod bot-0 was deleted.",
        "train attempt 2 starts.",
        "train attempt 2 resumes from step 40.",
        "Suspended in stage train; spec.suspend: false goes on.",
        "Training on 2 nodes.",
        "1,000 rows: 800 train, 100 validation, 100 test; 3 invalid, left out.",
        "150 steps of 16 rows, 3 epochs, 120,000 tokens.",
        "Training on 2 nodes.",
    ]


FULL_PLAN = {
    **PLAN, "digest": "4f2a", "parameters": 8_030_000_000, "trainableParameters": 20_971_520, "memoryPerGpu": "41.3Gi",
    "storage": "12Gi", "duration": "2h10m", "longestSeconds": 10800, "gpuHours": 34.72, "cost": 86.8, "basis": "by table",
    "warning": "one node only", "choices": [{"field": "training.learningRate", "value": "0.0002", "why": "usual for lora"}],
}  # fmt: skip


def test_a_plan_is_told_with_what_it_takes(job: Job) -> None:
    assert view.news(job(), job(plan=FULL_PLAN)) == [
        "150 steps of 16 rows, 3 epochs, 120,000 tokens.",
        "About 2h10m, 34.7 GPU hours, cost 86.80, at most 41.3Gi of memory on each GPU.",
    ]


@pytest.mark.parametrize(
    ("status", "digest"),
    [
        ({"phase": "AwaitingApproval", "plan": FULL_PLAN}, "4f2a"),
        ({"phase": "AwaitingApproval", "plan": FULL_PLAN, "observedGeneration": 0}, None),
        ({"phase": "Training", "plan": FULL_PLAN}, None),
    ],
)
def test_a_job_that_waits_for_approval_goes_on_waiting(job: Job, status: dict[str, Any], digest: str | None) -> None:
    """Also a plan that was approved a moment ago is no longer asked about."""
    assert view.awaits(job(**status)) == digest
    assert view.end(job(**status)) is None
    assert (stages(job(**status))[1].detail == "plan 4f2a waits for approval") is (digest is not None)


@pytest.mark.parametrize(
    ("status", "ended"),
    [
        (
            {"phase": "Completed", "reason": "Planned", "conditions": condition("Complete")},
            view.End(True, "bot is planned; nothing was trained. Set spec.mode: Run to train it.", Exit.DONE),
        ),
        (
            {"phase": "Suspended", "reason": "BudgetExhausted", "message": "spec.budget.maxDuration: 2h are used up; raise it to go on", "lastCheckpoint": {"step": 7}},
            view.End(False, "bot stopped with a checkpoint: spec.budget.maxDuration: 2h are used up; raise it to go on.", Exit.BUDGET),
        ),
        ({"phase": "Training", "reason": "BudgetExhausted", "message": "saving a checkpoint"}, None),
        (
            {"phase": "Failed", "failure": {"code": "OverBudget", "stage": "prepare", "message": "spec.budget.maxCost: the plan costs 86.80, more than 50"}},
            view.End(False, "bot Failed in prepare: spec.budget.maxCost: the plan costs 86.80, more than 50.", Exit.FAILED),
        ),
    ],
)  # fmt: skip
def test_ends_of_plans_and_budgets(job: Job, status: dict[str, Any], ended: view.End | None) -> None:
    assert view.end(job(**status)) == ended


def test_findings_are_told_once(job: Job) -> None:
    """With what the check looks for; a code of a newer operator is told too."""
    found = [
        {"code": "Pii", "severity": "Warning", "count": 1200, "where": "pvc://d/a.jsonl:7"},
        {"code": "Later", "severity": "Info", "count": 1},
    ]
    before, now = job(), job(data={**DATA, "findings": found})
    assert view.findings(before, now) == [
        ("Warning", "Warning: Pii, 1,200 (addresses, phone, card or identity numbers), first at pvc://d/a.jsonl:7."),
        ("Info", "Info: Later, 1."),
    ]
    assert view.findings(now, now) == []


@pytest.mark.parametrize(
    ("reason", "attention"),
    [
        ("Training", False),
        ("AwaitingApproval", True),
        ("Suspended", False),
        ("Unschedulable", True),
        ("MissingClaim", True),
    ],
)
def test_only_what_somebody_must_mend_asks_for_attention(job: Job, reason: str, attention: bool) -> None:
    assert view.needs_attention(job(phase="Preparing", reason=reason, message="x")) is attention


PREPARED = attempt("prepare", outcome="Succeeded")
TRAINED = attempt("train", outcome="Succeeded")
STEP = {
    "stage": "train",
    "step": 75,
    "totalSteps": 150,
    "percent": 50,
    "summary": "50% 75/150",
    "loss": 1.25,
    "etaSeconds": 90,
}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        pytest.param({}, "waiting waiting waiting waiting", id="new"),
        pytest.param({"phase": "Preparing", "attempts": [attempt("prepare")]}, "running waiting waiting waiting", id="preparing"),
        pytest.param({"attempts": [PREPARED, attempt("train")], "progress": STEP}, "done running:50 waiting waiting", id="training"),
        pytest.param({"phase": "Suspended", "attempts": [PREPARED, attempt("train")], "progress": STEP}, "done waiting waiting waiting", id="suspended"),
        pytest.param({"attempts": [PREPARED, attempt("train", outcome="Evicted")], "progress": STEP}, "done waiting waiting waiting", id="between attempts"),
        pytest.param(
            {"attempts": [PREPARED, attempt("train")], "plan": PLAN, "lastCheckpoint": {"step": 150}, "progress": {**STEP, "stage": "evaluate", "step": 150, "percent": 40, "summary": "40% 80/200 evaluate"}},
            "done done running:40 waiting", id="evaluating the tuned model"),
        pytest.param(
            {"attempts": [PREPARED, attempt("train")], "plan": PLAN, "lastCheckpoint": {"step": 60}, "progress": {**STEP, "stage": "evaluate", "step": 60, "percent": 40, "summary": "40% 80/200 evaluate"}},
            "done done running:40 waiting", id="evaluating after stopping early"),
        pytest.param(
            {"attempts": [PREPARED, attempt("train")], "lastCheckpoint": {"step": 150}, "progress": {"stage": "evaluate", "step": 80, "totalSteps": 200, "percent": 94}},
            "done done running:40 waiting", id="evaluating in a local run"),
        pytest.param(
            {"attempts": [PREPARED, attempt("train")], "plan": PLAN, "progress": {**STEP, "stage": "evaluate", "step": 0, "percent": 40, "summary": "40% 80/200 evaluate"}},
            "done running:0 running:40 waiting", id="evaluating the base of a full training"),
        pytest.param({"attempts": [PREPARED, TRAINED, attempt("publish")], "progress": {"stage": "publish"}}, "done done done running", id="publishing"),
        pytest.param({"phase": "Completed", "attempts": [PREPARED, TRAINED, attempt("publish", outcome="Succeeded")]}, "done done done done", id="completed"),
        pytest.param({"phase": "Failed", "failure": {"code": "X", "stage": "train", "message": "x"}, "attempts": [PREPARED, attempt("train", outcome="Failed")], "progress": STEP}, "done failed:50 waiting waiting", id="failed"),
    ],
)  # fmt: skip
def test_stages(job: Job, status: dict[str, Any], expected: str) -> None:
    shown = [
        stage.state + (f":{stage.percent:.0f}" if stage.percent not in (None, 100) else "")
        for stage in stages(job(**status))
    ]
    assert " ".join(shown) == expected


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.4, "0s"), (59.6, "1m"), (61, "1m1s"), (3600, "1h"), (3605, "1h"), (3665, "1h1m"), (90000, "1d1h"), (-5, "0s")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (16.4e9, "16.4 GB"), (2e16, "20000.0 TB")]
)
def test_sizes(size: float, text: str) -> None:
    assert bytes_size(size) == text
