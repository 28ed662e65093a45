"""How far the running stage is, from what its rank 0 said last. What it says is not trusted, only shown."""

from __future__ import annotations

import math

from finetune_api.contract import Progress
from finetune_api.status import ProgressStatus

from finetune_operator.domain import numbers
from finetune_operator.domain.attempts.end import take_checkpoint_time, take_steps
from finetune_operator.domain.attempts.history import running
from finetune_operator.domain.plan_builder import PlanBuilder
from finetune_operator.domain.times import human

_STRAGGLES = 1.3


def show(builder: PlanBuilder) -> None:
    """Fill status.progress. A new stage begins at nothing, but keeps the losses of the training.

    While the training pods evaluate, the stage shown is `evaluate`; step and totalSteps stay those of the training, and
    the summary counts the rows that are measured.
    """
    job_state, status = builder.job_state, builder.status
    if job_state is not None and job_state.phase == "Completed":
        shown = status.progress or ProgressStatus()
        shown.percent, shown.eta, shown.eta_seconds, shown.tokens_per_second = 100, None, None, None
        shown.summary = _summary(100, shown.step, shown.total_steps)
        status.progress = shown
        return
    entry = running(builder.attempts)
    if entry is None:
        if status.progress is not None:
            status.progress.eta = status.progress.eta_seconds = None
        return
    shown = status.progress or ProgressStatus()
    if shown.stage != entry.stage and (shown.stage, entry.stage) != ("evaluate", "train"):
        shown = ProgressStatus(stage=entry.stage)
        if entry.stage == "publish" and status.progress is not None:
            before = status.progress
            shown.step, shown.total_steps, shown.epoch = before.step, before.total_steps, before.epoch
            shown.loss, shown.eval_loss = before.loss, before.eval_loss
        status.progress = shown
    reading = builder.observed.progress
    if builder.poll is None or reading is None or reading.pod_uid != builder.poll.uid or reading.progress is None:
        return
    told = reading.progress
    if told.stage == "train" and not told.step and status.last_checkpoint is not None:
        return  # it still loads the checkpoint: the progress shown so far is true
    take_steps(
        builder, entry, told.step if told.stage == "train" else None, told.resumed_from_step, told.last_checkpoint
    )
    take_checkpoint_time(builder, told.checkpoint_seconds)
    shown.stage = "evaluate" if (entry.stage, told.stage) == ("train", "evaluate") else entry.stage
    _take(shown, told)


def _take(shown: ProgressStatus, told: Progress) -> None:
    shown.percent = math.floor(told.percent)
    if told.stage in ("train", "prepare"):
        shown.step, shown.total_steps = min(told.step, numbers.LIMIT), min(told.total_steps, numbers.LIMIT) or None
        shown.epoch = numbers.shown(told.epoch, 3)
        shown.loss = numbers.shown(told.loss, 5)
        shown.eval_loss = numbers.shown(told.eval_loss, 5)
        shown.tokens_per_second = numbers.shown(told.tokens_per_second, 1)
        shown.straggler = _straggler(told)
    eta = numbers.shown(told.eta_seconds, 0)
    shown.eta_seconds = None if eta is None else int(min(max(eta, 0), 10 * 365 * 86400))
    shown.eta = None if shown.eta_seconds is None else human(shown.eta_seconds)
    step, total = (told.step, told.total_steps) if told.stage != "publish" else (None, None)
    shown.summary = _summary(shown.percent, step, total) + (" evaluate" if shown.stage == "evaluate" else "")


def _straggler(told: Progress) -> str | None:
    skew = numbers.shown(told.step_time_skew, 1)
    if told.slowest_rank is None or skew is None or skew < _STRAGGLES:
        return None
    return f"rank {told.slowest_rank} takes {skew:g} times the median step"


def _summary(percent: int, step: int | None, total: int | None) -> str:
    return f"{percent}%" + (f" {step}/{total}" if step is not None and total else "")
