"""The lines of the display: how far each stage of a job is, by its status."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from finetune_api.finetunejob import FineTuneJob
from finetune_api.status import FineTuneJobStatus

from finetune_cli.text import count, duration, number
from finetune_cli.view import artifacts_sentence, awaits, data_sentence, end, plan_sentence

StageName = Literal["prepare", "train", "evaluate", "publish"]
STAGES: tuple[StageName, ...] = ("prepare", "train", "evaluate", "publish")
State = Literal["waiting", "running", "done", "failed"]


@dataclass(frozen=True)
class StageView:
    """One line of the display. `percent` is of this stage; None if it is unknown."""

    name: StageName
    state: State
    percent: float | None = None
    detail: str = ""


def stages(job: FineTuneJob) -> list[StageView]:
    """The four lines of the display."""
    return [StageView(name, *_stage(job, name)) for name in STAGES]


def _stage(job: FineTuneJob, name: StageName) -> tuple[State, float | None, str]:
    status = job.status
    attempts = [
        attempt for attempt in status.attempts or [] if attempt.stage == ("train" if name == "evaluate" else name)
    ]
    last = attempts[-1] if attempts else None
    succeeded = any(attempt.outcome == "Succeeded" for attempt in attempts)
    if name == "prepare" and (succeeded or status.data):
        return "done", 100, data_sentence(job).rstrip(".")
    if name == "train" and (succeeded or _trained(status)):
        return "done", 100, plan_sentence(job).rstrip(".")
    if name == "evaluate" and succeeded:
        rows = status.evaluation.rows if status.evaluation else None
        return "done", 100, count(rows, "held-out row") if rows else ""
    if name == "publish" and (succeeded or status.artifacts):
        return "done", 100, artifacts_sentence(job)
    if name == "train" and (digest := awaits(job)):
        return "waiting", None, f"plan {digest} waits for approval"
    moving = _moving(status)
    percent = _percent(status, name) if moving == name or (name == "train" and moving == "evaluate") else None
    if (ended := end(job)) and not ended.succeeded:
        failed = status.failure.stage if status.failure else None
        return ("failed", percent, "") if failed == name else ("waiting", None, "")
    if status.phase == "Suspended" or last is None or last.outcome != "Running":
        return "waiting", None, ""
    if name == "evaluate":
        return ("running", percent, _detail(status, name)) if moving == name else ("waiting", None, "")
    detail = _detail(status, name) if percent is not None else f"attempt {last.number}" if last.number > 1 else ""
    return "running", percent, detail


def _moving(status: FineTuneJobStatus) -> str | None:
    """Which of STAGES the figures in status.progress are about. The evaluation is part of the attempt at train."""
    return status.progress.stage if status.progress is not None else None


def _trained(status: FineTuneJobStatus) -> bool:
    """What runs is the evaluation of the tuned model: a base is measured before anything is saved."""
    saved = status.last_checkpoint.step if status.last_checkpoint else 0
    return saved > 0 and _moving(status) == "evaluate"


def _percent(status: FineTuneJobStatus, name: StageName) -> float | None:
    """Of this line alone: status.progress.percent is of the stage train with its evaluation."""
    progress = status.progress
    if progress is None:
        return None
    if name == "evaluate":
        done = _rows_measured(status)
        return 100 * done[0] / done[1] if done else 0
    if name == "train" and progress.stage == "train" and progress.total_steps:
        return 100 * (progress.step or 0) / progress.total_steps
    if name == "train" and _moving(status) == "evaluate":
        return 0  # a full training measures its base before step 1
    return None if progress.percent is None else float(progress.percent)


def _rows_measured(status: FineTuneJobStatus) -> tuple[int, int] | None:
    """Rows of the evaluation, done and all. On a cluster they are in the summary: step and totalSteps stay those of
    the training."""
    progress = status.progress
    if progress is None:
        return None
    if progress.summary is None:  # a local run
        return (progress.step or 0, progress.total_steps) if progress.total_steps else None
    match = re.search(r"(\d+)/(\d+)", progress.summary)
    return (int(match[1]), int(match[2])) if match and int(match[2]) else None


def _detail(status: FineTuneJobStatus, name: StageName) -> str:
    progress = status.progress
    if progress is None or _moving(status) != name:
        return ""
    parts = []
    if name == "evaluate":
        if done := _rows_measured(status):
            parts.append(f"row {number(done[0])}/{number(done[1])}")
    elif progress.total_steps:
        unit = {"train": "step ", "prepare": "row "}.get(name, "")
        parts.append(f"{unit}{number(progress.step or 0)}/{number(progress.total_steps)}")
    if name == "train":
        if progress.loss is not None:
            parts.append(f"loss {progress.loss:.4g}")
        if progress.eval_loss is not None:
            parts.append(f"validation {progress.eval_loss:.4g}")
        if progress.tokens_per_second:
            parts.append(f"{number(round(progress.tokens_per_second))} tokens/s")
    if progress.eta_seconds is not None:
        parts.append(f"{duration(progress.eta_seconds)} left")
    return "  ".join(parts)
