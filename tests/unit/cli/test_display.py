"""What a person and a log see."""

from __future__ import annotations

import io
from typing import Any

import pytest
from finetune_cli import result
from finetune_cli.display import Bars, Lines, display
from rich.console import Console

from .conftest import Job
from .test_view import FULL_PLAN

ATTEMPTS = [
    {"stage": "prepare", "number": 1, "job": "j", "outcome": "Succeeded"},
    {"stage": "train", "number": 1, "job": "j", "outcome": "Running"},
]
DATA = {"rows": 1000, "trainRows": 800, "validationRows": 100, "testRows": 100}


def console(**options: Any) -> Console:
    return Console(file=io.StringIO(), width=100, highlight=False, soft_wrap=True, **options)


def text(screen: Console) -> str:
    assert isinstance(screen.file, io.StringIO)
    return "\n".join(line.rstrip() for line in screen.file.getvalue().splitlines())


def progress(step: int, **more: Any) -> dict[str, Any]:
    return {"stage": "train", "step": step, "totalSteps": 200, "percent": step // 2, "summary": "x", **more}


def test_lines_come_now_and_then(job: Job) -> None:
    """In a log: a line for each thing that happens, progress every ten seconds."""
    screen, time = console(), [100.0]
    lines = Lines(screen, clock=lambda: time[0])
    lines.show(job())
    for step in range(0, 31, 2):
        lines.show(
            job(attempts=ATTEMPTS, data=DATA, progress=progress(step, loss=2.5, tokensPerSecond=1234.5, etaSeconds=80))
        )
        time[0] += 2.0
    assert text(screen).splitlines() == [
        "team-a/bot: lora on pvc://models/base, 2 pods",
        "1,000 rows: 800 train, 100 validation, 100 test.",
        "train 0%  step 0/200  loss 2.5  1,234 tokens/s  1m20s left",
        "train 5%  step 10/200  loss 2.5  1,234 tokens/s  1m20s left",
        "train 10%  step 20/200  loss 2.5  1,234 tokens/s  1m20s left",
        "train 15%  step 30/200  loss 2.5  1,234 tokens/s  1m20s left",
    ]


def test_the_picture_in_a_terminal(job: Job) -> None:
    screen = console(force_terminal=True, color_system=None, legacy_windows=False)
    bars = display(screen)
    assert isinstance(bars, Bars)
    bars.show(
        job(
            phase="Queued",
            reason="Unschedulable",
            message="Pod bot-0 cannot be scheduled: 0/3 nodes",
            attempts=ATTEMPTS,
            data=DATA,
        )
    )
    bars.show(job(phase="Training", reason="Training", message="Training on 2 nodes", attempts=ATTEMPTS, data=DATA, progress=progress(100, loss=1.5)))  # fmt: skip
    bars.close()
    picture = text(screen).splitlines()[-6:]
    assert "✓ prepare" in picture[0]
    assert "100% 1,000 rows: 800 train" in picture[0]
    assert "50% step 100/200  loss 1.5" in picture[1]
    assert picture[2].strip() == "· evaluate"
    assert "Training on 2 nodes." in picture[4]


@pytest.mark.parametrize(("terminal", "kind"), [(True, Bars), (False, Lines)])
def test_bars_are_for_terminals_only(terminal: bool, kind: type) -> None:
    screen = display(console(force_terminal=terminal))
    screen.close()
    assert isinstance(screen, kind)


def test_the_end_of_a_good_job(job: Job) -> None:
    screen = console()
    metrics = [
        {"metric": "exact-match", "base": 0.0, "tuned": 0.975},
        {"metric": "loss", "base": 3.2, "tuned": 0.04},
    ]
    done = job(
        phase="Completed",
        evaluation={"rows": 200, "generatedRows": 200, "metrics": metrics},
        artifacts={"uri": "pvc://models/bot", "report": "pvc://models/bot/report.html", "files": 9, "bytes": 1234567},
    )
    result.show(screen, done, ["Fetch them: ftj pull bot DIR"])
    assert (
        text(screen)
        == """
 metric        base   tuned         change
 ─────────────────────────────────────────
 exact-match   0.0%   97.5%   +97.5 points
 loss           3.2    0.04          -3.16

Measured on 200 held-out rows; answers generated for 200 of them.
Artifacts  pvc://models/bot (9 files, 1.2 MB)
Report     pvc://models/bot/report.html
Fetch them: ftj pull bot DIR
bot completed."""
    )


def test_without_a_measured_base_there_is_no_comparison(job: Job) -> None:
    screen = console()
    result.show(screen, job(phase="Completed", evaluation={"rows": 1, "metrics": [{"metric": "loss", "tuned": 0.5}]}))
    assert "base" not in text(screen)
    assert "change" not in text(screen)
    assert "Measured on 1 held-out row." in text(screen)


def test_the_last_line_of_a_failed_job_is_why_and_what_to_do(job: Job) -> None:
    screen = console()
    failure = {"code": "OutOfMemory", "stage": "train", "message": "GPU memory is full", "remedy": "Use more"}
    result.show(screen, job(phase="Failed", failure=failure, lastCheckpoint={"step": 40, "path": "pvc://s/step-40"}))
    assert text(screen).splitlines() == [
        "Last sealed checkpoint: step 40 in pvc://s/step-40",
        "bot Failed in train: GPU memory is full. Use more.",
    ]


def test_a_plan_that_was_all_that_was_asked_for(job: Job) -> None:
    screen = console()
    result.show(screen, job(phase="Completed", reason="Planned", plan=FULL_PLAN))
    assert (
        text(screen)
        == """\
Plan        4f2a
Steps       150 of 16 rows, 3 epochs, 120,000 tokens
Parameters  8,030,000,000, 20,971,520 trained (0.26%)
Memory      41.3Gi on each GPU at the peak
Storage     12Gi
Time        2h10m, at most 3h00m (by table)
GPU hours   34.7
Cost        86.80
! one node only

 decided for you         value    why
 ───────────────────────────────────────────────
 training.learningRate   0.0002   usual for lora

bot is planned; nothing was trained. Set spec.mode: Run to train it."""
    )


def test_a_plan_that_waits_is_seen_in_a_terminal(job: Job) -> None:
    screen = console(force_terminal=True, color_system=None, legacy_windows=False)
    bars = Bars(screen)
    found = [{"code": "Pii", "severity": "Warning", "count": 3}]
    bars.show(job(phase="AwaitingApproval", reason="AwaitingApproval", message="Waits", plan=FULL_PLAN, data={**DATA, "findings": found}))  # fmt: skip
    bars.close()
    picture = text(screen)
    assert "Warning: Pii, 3 (addresses" in picture
    assert "150 steps of 16 rows" in picture
    assert "About 2h10m, 34.7 GPU hours" in picture
    assert "plan 4f2a waits for approval" in picture


def test_markup_in_what_others_wrote_stays_text(job: Job) -> None:
    """A message may hold brackets; rich would take them for its own."""
    screen = console()
    lines = Lines(screen)
    lines.show(job(phase="Preparing", message="row [3] has [/no] [bold]answer[/bold]"))
    assert "row [3] has [/no] [bold]answer[/bold]." in text(screen)
