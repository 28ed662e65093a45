"""How an attempt ended, written into the book and the status. Whatever is written here is written before anything follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune_api.contract import TerminationMessage
from finetune_api.effective import holding
from finetune_api.planner.decide import FIELDS
from finetune_api.status import AttemptStatus, CheckpointStatus, FailureStatus, FineTuneJobStatus, Stage

from finetune_operator.domain import numbers
from finetune_operator.domain.admission import plan_admission
from finetune_operator.domain.attempts.completion import fail
from finetune_operator.domain.diagnosis.failures import FailureClass
from finetune_operator.domain.observed import JobView, PodView
from finetune_operator.domain.plan_builder import JobState, PlanBuilder
from finetune_operator.domain.reasons import Reason
from finetune_operator.domain.times import human, seconds_of, stamp

SETTLE_S = 5.0
"""A Job's end may be seen before the ends of its pods. How long they are waited for."""
CHECKPOINTS_SHOWN = 10


def read_stops(draft: PlanBuilder, entry: AttemptStatus, pods: Sequence[PodView]) -> None:
    """What pods that ended have said of steps and checkpoints."""
    for pod in pods:
        message = pod.ended.message if pod.ended is not None else None
        if message is not None:
            take_steps(draft, entry, message.step, message.resumed_from_step, message.last_checkpoint)


def take_steps(
    draft: PlanBuilder,
    entry: AttemptStatus,
    step: int | None,
    resumed_from: int | None,
    checkpoint: CheckpointStatus | None,
) -> None:
    if step is not None:
        entry.last_step = max(step, entry.last_step or 0)
    if resumed_from is not None:
        entry.resumed_from_step = max(resumed_from, entry.resumed_from_step or 0)
    if checkpoint is None:
        return
    status = draft.status
    known = {c.step: c for c in status.checkpoints or []}
    known[checkpoint.step] = checkpoint
    shown = min(CHECKPOINTS_SHOWN, draft.spec.checkpoint.keep + 1)
    status.checkpoints = [known[step] for step in sorted(known)][-shown:]
    status.last_checkpoint = status.checkpoints[-1]


def sealed_step(draft: PlanBuilder, stage: Stage) -> int | None:
    """The step that a training would go on from: the checkpoint is not the other stages'."""
    checkpoint = draft.status.last_checkpoint if stage == "train" else None
    return checkpoint.step if checkpoint is not None else None


def _goes_on(draft: PlanBuilder, stage: Stage) -> str:
    step = sealed_step(draft, stage)
    return f"Stage {stage} goes on" + (f" from step {step}" if step is not None else "")


def all_seen(draft: PlanBuilder, stage: Stage, job: JobView, pods: Sequence[PodView]) -> bool:
    """Whether the ends of the pods are known too; if not, another look follows soon."""
    since = job.failed or job.failing or 0.0
    if any(pod.ended is not None or pod.phase == "Failed" for pod in pods) and all(pod.over for pod in pods):
        return True
    if 0 <= draft.now - since < SETTLE_S:
        _wait(draft, stage)
        return False
    return True


def _wait(draft: PlanBuilder, stage: Stage) -> None:
    before = draft.before
    draft.situation = JobState(
        before.phase or "Pending",
        before.reason or Reason.STARTING,
        before.message or f"Stage {stage} ends",
        running=any(c.type == "Running" and c.status == "True" for c in before.conditions or []),
    )
    draft.requeue_after(1.0)


def succeed(draft: PlanBuilder, stage: Stage, entry: AttemptStatus, job: JobView, pods: Sequence[PodView]) -> None:
    """The stage is done and never runs again."""
    messages = {p.index: p.ended.message for p in pods if p.ended is not None and p.ended.exit_code == 0}
    message = messages.get(0)
    if message is None and job.complete is not None and 0 <= draft.now - job.complete < SETTLE_S:
        _wait(draft, stage)
        return
    _close(draft, entry, "Succeeded")
    if message is not None:
        _take_results(draft, stage, message)
    if stage == "prepare":
        draft.settle()
        plan_admission.make_plan(draft)
    took = _took(entry)
    draft.emit_event("Normal", Reason.STAGE_DONE, "Finish", f"Stage {stage} is done{took}{_result(draft, stage)}")


def _take_results(draft: PlanBuilder, stage: Stage, message: TerminationMessage) -> None:
    """Each stage's own results, and nothing else that its pod may say."""
    status = draft.status
    match stage:
        case "prepare":
            status.data = message.data or status.data
            status.plan = status.plan if message.plan is None else plan_admission.counted(message.plan)
            if message.facts is not None:
                status.facts = message.facts.wire()
                status.decided = _usable(draft, message.decided or {})
        case "train":
            status.evaluation = message.evaluation or status.evaluation
            _take_last_figures(status, message)
        case "publish":
            status.artifacts = message.artifacts or status.artifacts


def _take_last_figures(status: FineTuneJobStatus, message: TerminationMessage) -> None:
    progress = status.progress
    if progress is None:
        return
    progress.loss = numbers.shown(message.metrics.get("loss", progress.loss), 5)
    progress.eval_loss = numbers.shown(message.metrics.get("eval_loss", progress.eval_loss), 5)
    progress.step = message.step if message.step is not None else progress.step
    progress.total_steps = progress.total_steps or (None if status.plan is None else status.plan.steps)


def _usable(draft: PlanBuilder, decided: dict[str, Any]) -> dict[str, Any]:
    """What a pod may decide: hyperparameters and how memory is shared, never GPUs, pods, locations or budgets."""
    allowed: dict[str, Any] = {}
    for path in FIELDS:
        *groups, name = path.split(".")
        given: Any = decided
        for group in groups:
            given = given.get(group) if isinstance(given, dict) else None
        if isinstance(given, dict) and name in given:
            into = allowed
            for group in groups:
                into = into.setdefault(group, {})
            into[name] = given[name]
    try:
        holding(draft.wanted, allowed)
    except ValueError:
        return {}
    return allowed


def _result(draft: PlanBuilder, stage: Stage) -> str:
    status = draft.status
    if stage == "prepare" and status.data is not None and status.data.train_rows is not None:
        steps = f", {status.plan.steps} steps" if status.plan is not None and status.plan.steps is not None else ""
        return f": {status.data.train_rows} rows to train on{steps}"
    return ""


def _took(entry: AttemptStatus) -> str:
    start, end = seconds_of(entry.started), seconds_of(entry.finished)
    return f" after {human(end - start)}" if start is not None and end is not None else ""


def record(draft: PlanBuilder, entry: AttemptStatus, verdict: FailureClass, pods: Sequence[PodView] = ()) -> None:
    """Write the verdict down. An attempt that may be repeated is, within its budget."""
    if entry.stage == "prepare":
        found = [p.ended.message.data for p in pods if p.ended is not None and p.ended.message is not None]
        draft.status.data = next((data for data in found if data is not None), draft.status.data)
    failure = verdict.failure
    entry.reason, entry.message = failure.code, failure.message[:1000]
    if verdict.last_step is not None:
        entry.last_step = max(verdict.last_step, entry.last_step or 0)
    _close(draft, entry, "Evicted" if verdict.kind == "evicted" else "Failed")
    if verdict.kind == "fatal":
        fail(draft, failure)
        return
    if verdict.kind == "evicted":
        draft.emit_event("Warning", Reason.EVICTED, "Resume", f"{failure.message}. {_goes_on(draft, entry.stage)}")
        return
    failures = (draft.status.infra_failures or 0) + 1
    draft.status.infra_failures = failures
    allowed = draft.wanted.retry.infra
    if failures > allowed:
        fail(draft, _exhausted(failure, failures, allowed))
        return
    draft.emit_event(
        "Warning",
        Reason.ATTEMPT_FAILED,
        "Retry",
        f"{failure.message}. Failure {failures} of the {allowed} that spec.retry.infra allows; stage {entry.stage} is tried again",
    )


def _exhausted(failure: FailureStatus, failures: int, allowed: int) -> FailureStatus:
    tried = f"spec.retry.infra {allowed} is used up" if allowed else "spec.retry.infra is 0"
    return failure.model_copy(update={"message": f"{failure.message} (failure {failures}; {tried})", "retriable": True})


def preempt(draft: PlanBuilder, entry: AttemptStatus, pods: Sequence[PodView]) -> None:
    """The pods were told to stop and did, with a checkpoint: nobody's error."""
    told = next((pod for pod in pods if pod.disrupted is not None or pod.deletion_asked is not None), None)
    why = ""
    if told is not None:
        why = f". Pod {told.name} was {f'disrupted ({told.disrupted})' if told.disrupted is not None else 'deleted'}"
    step = f" at step {entry.last_step}" if entry.last_step is not None else ""
    entry.reason, entry.message = Reason.PREEMPTED, f"The pods of stage {entry.stage} were stopped{step}{why}"
    _close(draft, entry, "Stopped")
    draft.emit_event("Warning", Reason.PREEMPTED, "Resume", f"{entry.message}. {_goes_on(draft, entry.stage)}")


def stop(draft: PlanBuilder, entry: AttemptStatus, reason: Reason, message: str) -> None:
    """Given up by this operator: its children are cleaned up, and the next attempt has nothing to wait for."""
    entry.reason, entry.message = reason, message
    _close(draft, entry, "Stopped")


def _close(draft: PlanBuilder, entry: AttemptStatus, how: str) -> None:
    entry.outcome = how  # type: ignore[assignment]
    entry.finished = stamp(draft.now)
    draft.status_first = True
