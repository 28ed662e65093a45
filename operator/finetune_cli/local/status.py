"""From what a stage's processes say to the status that the operator would write."""

from __future__ import annotations

from datetime import UTC, datetime

from finetune_api.contract import Progress, TerminationMessage
from finetune_api.operator_state import OperatorState
from finetune_api.status import (
    STAGES,
    AttemptStatus,
    Condition,
    FailureStatus,
    FineTuneJobStatus,
    Phase,
    ProgressStatus,
    Stage,
)

from finetune_cli.local.gate import Held

PHASES: dict[Stage, Phase] = {"prepare": "Preparing", "train": "Training", "publish": "Publishing"}


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def next_stage(status: FineTuneJobStatus) -> Stage | None:
    """The first stage that never succeeded. A stage that is done is never run again."""
    done = {attempt.stage for attempt in status.attempts or [] if attempt.outcome == "Succeeded"}
    return next((stage for stage in STAGES if stage not in done), None)


def begin(status: FineTuneJobStatus, stage: Stage) -> AttemptStatus:
    """A new attempt at `stage`, which supersedes one that was cut off."""
    attempts = status.attempts = status.attempts or []
    for attempt in attempts:
        if attempt.outcome == "Running":
            attempt.outcome, attempt.finished = "Evicted", now()
            attempt.message = "ftj ended before this attempt did"
    number = 1 + max((attempt.number for attempt in attempts if attempt.stage == stage), default=0)
    attempt = AttemptStatus(stage=stage, number=number, job="local", started=now())
    attempts.append(attempt)
    del attempts[:-20]
    status.phase, status.reason, status.message = PHASES[stage], PHASES[stage], None
    status.failure = status.progress = status.completion_time = None
    status.conditions = None
    status.start_time = status.start_time or now()
    return attempt


def advance(status: FineTuneJobStatus, attempt: AttemptStatus, progress: Progress) -> None:
    """What the endpoint says now."""
    status.progress = ProgressStatus(
        stage=progress.stage,
        percent=int(progress.percent),
        step=progress.step,
        total_steps=progress.total_steps or None,
        epoch=progress.epoch,
        eta_seconds=None if progress.eta_seconds is None else int(progress.eta_seconds),
        tokens_per_second=progress.tokens_per_second,
        loss=progress.loss,
        eval_loss=progress.eval_loss,
    )
    if progress.resumed_from_step:
        attempt.resumed_from_step = progress.resumed_from_step
    status.last_checkpoint = progress.last_checkpoint or status.last_checkpoint


def conclude(status: FineTuneJobStatus, attempt: AttemptStatus, message: TerminationMessage) -> None:
    """The stage's last word."""
    attempt.finished = now()
    attempt.last_step = message.step
    attempt.resumed_from_step = message.resumed_from_step or attempt.resumed_from_step
    status.data = message.data or status.data
    status.plan = message.plan or status.plan
    state = OperatorState.of(status)
    state.facts = message.facts.wire() if message.facts else state.facts
    if attempt.stage == "prepare" and message.outcome == "succeeded":
        state.decided = message.decided or {}
    status.state = state.encode()
    status.evaluation = message.evaluation or status.evaluation
    status.artifacts = message.artifacts or status.artifacts
    status.last_checkpoint = message.last_checkpoint or status.last_checkpoint
    match message.outcome:
        case "succeeded":
            attempt.outcome = "Succeeded"
            if next_stage(status) is None:
                _finish(status, "Completed", "Complete", "Completed", "The result is published")
        case "stopped":
            attempt.outcome = "Stopped"
            status.phase, status.reason = "Suspended", "Stopped"
        case "failed":
            cause = message.cause
            attempt.outcome = "Failed"
            attempt.reason = cause.code if cause else "Unknown"
            attempt.message = cause.message if cause else f"exit code {message.exit_code}"
            status.failure = FailureStatus(
                code=attempt.reason,
                stage=attempt.stage,
                rank=message.rank,
                exit_code=message.exit_code,
                message=attempt.message,
                remedy=cause.remedy if cause else None,
            )
            _finish(status, "Failed", "Failed", attempt.reason, attempt.message)


def hold(status: FineTuneJobStatus, held: Held) -> None:
    """Training does not begin, or does not go on."""
    match held.phase:
        case "Completed":
            _finish(status, "Completed", "Complete", held.reason, held.message)
        case "Failed":
            status.failure = FailureStatus(code=held.reason, message=held.message)
            _finish(status, "Failed", "Failed", held.reason, held.message)
        case _:
            status.phase, status.reason, status.message = held.phase, held.reason, held.message
            status.progress = None


def _finish(status: FineTuneJobStatus, phase: Phase, condition: str, reason: str, message: str) -> None:
    status.phase, status.reason, status.message = phase, reason, message
    status.completion_time = now()
    status.progress = None
    status.conditions = [
        Condition(type=condition, status="True", reason=reason, message=message, last_transition_time=now())
    ]
