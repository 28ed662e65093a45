"""End an attempt: record in history and status how. It is written before anything follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune_api.contract import TerminationMessage
from finetune_api.effective import holding
from finetune_api.planner.decide import FIELDS
from finetune_api.planner.ladder import Notch
from finetune_api.status import AttemptStatus, CheckpointStatus, FailureStatus, FineTuneJobStatus, PlanStatus, Stage

from finetune_operator.domain import numbers
from finetune_operator.domain.admission import plan_admission
from finetune_operator.domain.attempts.completion import fail
from finetune_operator.domain.attempts.memory import take_notch
from finetune_operator.domain.diagnosis.failures import FailureClass
from finetune_operator.domain.observed import JobView, PodView, Read
from finetune_operator.domain.plan_builder import JobState, PlanBuilder
from finetune_operator.domain.reasons import Code, Reason
from finetune_operator.domain.times import human, seconds_of, stamp

SETTLE_S = 5.0
"""A Job's end may be seen before the ends of its pods. How long they are waited for."""
CHECKPOINTS_SHOWN = 10
RESULTS_LOST = 3
"""How often a stage runs again because its result was lost: a cluster may delete every pod at once."""


def read_messages(builder: PlanBuilder, attempt: AttemptStatus, pods: Sequence[PodView]) -> None:
    """Take steps and checkpoints from the termination messages of pods that ended."""
    for pod in pods:
        message = pod.ended.message if pod.ended is not None else None
        if message is not None:
            take_steps(builder, attempt, message.step, message.resumed_from_step, message.last_checkpoint)
            take_checkpoint_time(builder, message.checkpoint_seconds)


def take_steps(
    builder: PlanBuilder,
    attempt: AttemptStatus,
    step: int | None,
    resumed_from: int | None,
    checkpoint: CheckpointStatus | None,
) -> None:
    if step is not None:
        attempt.last_step = max(step, attempt.last_step or 0)
    if resumed_from is not None:
        attempt.resumed_from_step = max(resumed_from, attempt.resumed_from_step or 0)
        if checkpoint is None and resumed_from > (sealed_step(builder, attempt.stage) or 0):
            checkpoint = CheckpointStatus(step=resumed_from)
    if attempt.stage == "train" and (step or resumed_from):
        _count_steps_lost(builder, attempt)
    if checkpoint is None:
        return
    status, state = builder.status, builder.state
    known = {c.step: c for c in state.checkpoints or []}
    known[checkpoint.step] = checkpoint
    shown = min(CHECKPOINTS_SHOWN, builder.spec.checkpoint.keep + 1)
    state.checkpoints = [known[step] for step in sorted(known)][-shown:]
    status.last_checkpoint = state.checkpoints[-1]


def _count_steps_lost(builder: PlanBuilder, attempt: AttemptStatus) -> None:
    """The step that an attempt resumes from is what those before it had saved, also where their ends were not observed."""
    if attempt.resumed_from_step is None and sealed_step(builder, "train") is not None:
        return
    begin = attempt.resumed_from_step or 0
    earlier = [
        a for a in builder.attempts if a.stage == "train" and a.number < attempt.number and a.started is not None
    ]
    if earlier and begin > max(a.last_step or 0 for a in earlier):
        earlier[-1].last_step = begin
    last = next((a for a in reversed(earlier) if a.last_step is not None), None)
    if last is not None and last.last_step is not None:
        last.steps_lost = max(0, last.last_step - begin)


def take_checkpoint_time(builder: PlanBuilder, seconds: float | None) -> None:
    """Rounded, so that it is written only when it has changed enough to matter."""
    known, measured = builder.state.checkpoint_seconds or 0.0, numbers.shown(seconds, 0)
    if measured is not None and abs(measured - known) > max(10.0, 0.2 * known):
        builder.state.checkpoint_seconds = measured


def sealed_step(builder: PlanBuilder, stage: Stage) -> int | None:
    """The step that a training would go on from: the checkpoint is not the other stages'."""
    checkpoint = builder.status.last_checkpoint if stage == "train" else None
    return checkpoint.step if checkpoint is not None else None


def _resumes(builder: PlanBuilder, stage: Stage) -> str:
    step = sealed_step(builder, stage)
    return f"Stage {stage} resumes" + (f" from step {step}" if step is not None else "")


def all_ends_known(builder: PlanBuilder, stage: Stage, job: JobView, pods: Sequence[PodView]) -> bool:
    """Whether the ends of the pods are known too; if not, they soon are."""
    since = job.failed or job.failing or 0.0
    if any(pod.ended is not None or pod.phase == "Failed" for pod in pods) and all(pod.over for pod in pods):
        return True
    if 0 <= builder.now - since < SETTLE_S:
        _await_messages(builder, stage)
        return False
    return True


def unchanged(builder: PlanBuilder, stage: Stage) -> JobState:
    """The state that the status shows already."""
    before = builder.before
    return JobState(
        before.phase or "Pending",
        before.reason or Reason.STARTING,
        before.message or f"Stage {stage} ends",
        running=any(c.type == "Running" and c.status == "True" for c in before.conditions or []),
    )


def _await_messages(builder: PlanBuilder, stage: Stage) -> None:
    builder.job_state = unchanged(builder, stage)
    builder.requeue_after(1.0)


def succeed(
    builder: PlanBuilder,
    stage: Stage,
    attempt: AttemptStatus,
    pods: Sequence[PodView],
    *,
    completed: float | None = None,
) -> None:
    """The stage is done and never runs again. `pods` are also those that are gone; `completed`: when its Job was, in seconds since 1970."""
    ended = [pod for pod in pods if pod.index == 0 and pod.ended is not None]
    message = next((p.ended.message for p in ended if p.ended and p.ended.exit_code == 0), None)
    if message is None and completed is not None and 0 <= builder.now - completed < SETTLE_S:
        _await_messages(builder, stage)
        return
    if not ended and stage != "train" and attempt.job not in builder.observed.pods_read:
        builder.reads.add(Read("pods", attempt.job))  # the watch may be behind
        builder.requeue_after(SETTLE_S)
        builder.job_state = unchanged(builder, stage)
        return
    if not ended and stage != "train" and _lost_results(builder, stage) < RESULTS_LOST:
        # Without its results nothing says what the training may cost. The stage finds its sealed files and reports them.
        stop(builder, attempt, Reason.RESULT_LOST, f"The pod of stage {stage} was deleted before its result was read")
        builder.emit_event("Warning", Reason.RESULT_LOST, "Retry", f"{attempt.message}; the stage runs again")
        return
    _close(builder, attempt, "Succeeded")
    if message is not None:
        _take_results(builder, stage, message)
    if stage == "prepare":
        builder.resolve_and_show()
        plan_admission.make_plan(builder)
    took = _took(attempt)
    builder.emit_event("Normal", Reason.STAGE_DONE, "Finish", f"Stage {stage} is done{took}{_result(builder, stage)}")


def _lost_results(builder: PlanBuilder, stage: Stage) -> int:
    return sum(a.stage == stage and a.reason == Reason.RESULT_LOST for a in builder.attempts)


def _take_results(builder: PlanBuilder, stage: Stage, message: TerminationMessage) -> None:
    """Each stage's own results, and nothing else that its pod may say."""
    status = builder.status
    match stage:
        case "prepare":
            status.data = message.data or status.data
            status.plan = status.plan if message.plan is None else plan_admission.counted(message.plan)
            if message.facts is not None:
                builder.state.facts = message.facts.wire()
                builder.state.decided = _usable(builder, message.decided or {})
        case "train":
            status.evaluation = message.evaluation or status.evaluation
            _take_last_figures(status, message)
        case "publish":
            status.artifacts = message.artifacts or status.artifacts
            # It reads the training's results from the sealed folder: the message of the training's pod may be lost.
            status.evaluation = status.evaluation or message.evaluation


def _take_last_figures(status: FineTuneJobStatus, message: TerminationMessage) -> None:
    """All of one reading: a training may end long after its progress was last read."""
    progress, plan = status.progress, status.plan or PlanStatus()
    if progress is None:
        return
    progress.loss = numbers.shown(message.metrics.get("loss", progress.loss), 5)
    progress.eval_loss = numbers.shown(message.metrics.get("eval_loss", progress.eval_loss), 5)
    progress.total_steps = progress.total_steps or plan.steps
    if message.step is not None and message.step != progress.step:
        progress.step = message.step
        progress.epoch = (
            numbers.shown(plan.epochs * message.step / plan.steps, 3) if plan.epochs and plan.steps else None
        )


def _usable(builder: PlanBuilder, decided: dict[str, Any]) -> dict[str, Any]:
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
        holding(builder.wanted, allowed)
    except ValueError:
        return {}
    return allowed


def _result(builder: PlanBuilder, stage: Stage) -> str:
    status = builder.status
    if stage == "prepare" and status.data is not None and status.data.train_rows is not None:
        steps = f", {status.plan.steps} steps" if status.plan is not None and status.plan.steps is not None else ""
        return f": {status.data.train_rows} rows to train on{steps}"
    return ""


def _took(attempt: AttemptStatus) -> str:
    start, end = seconds_of(attempt.started), seconds_of(attempt.finished)
    return f" after {human(end - start)}" if start is not None and end is not None else ""


def record_failure(
    builder: PlanBuilder, attempt: AttemptStatus, verdict: FailureClass, pods: Sequence[PodView] = ()
) -> None:
    """Record the failure. An attempt that may be repeated is, within its budget."""
    if attempt.stage == "prepare":
        found = [p.ended.message.data for p in pods if p.ended is not None and p.ended.message is not None]
        builder.status.data = next((data for data in found if data is not None), builder.status.data)
    failure = verdict.failure
    attempt.reason, attempt.message, attempt.node = failure.code, failure.message[:1000], failure.node
    if verdict.last_step is not None:
        attempt.last_step = max(verdict.last_step, attempt.last_step or 0)
    _close(builder, attempt, "Evicted" if verdict.kind == "evicted" else "Failed")
    if not pods:
        attempt.steps_lost = None  # how far it came is unknown until the next attempt resumes
    if failure.code == Code.OUT_OF_MEMORY:
        notch = take_notch(builder, attempt.stage, pods)
        if isinstance(notch, Notch):
            attempt.message = f"{failure.message}. {notch.sentence}"[:1000]
            text = f"{attempt.message}. {_resumes(builder, attempt.stage)}"
            builder.emit_event("Warning", Reason.MEMORY_REDUCED, "Retry", text)
            return
        failure = failure.model_copy(
            update={"remedy": f"{failure.remedy}. {notch.sentence}" if failure.remedy else notch.sentence}
        )
    if verdict.kind == "fatal":
        fail(builder, failure)
        return
    if verdict.kind == "evicted":
        builder.emit_event(
            "Warning", Reason.EVICTED, "Resume", f"{failure.message}. {_resumes(builder, attempt.stage)}"
        )
        return
    failures = builder.state.infra_failures + 1
    builder.state.infra_failures = failures
    allowed = builder.wanted.retry.infra
    if failures > allowed:
        fail(builder, _exhausted(failure, failures, allowed))
        return
    builder.emit_event(
        "Warning",
        Reason.ATTEMPT_FAILED,
        "Retry",
        f"{failure.message}. Failure {failures} of the {allowed} that spec.retry.infra allows; stage {attempt.stage} runs again",
    )


def _exhausted(failure: FailureStatus, failures: int, allowed: int) -> FailureStatus:
    tried = f"spec.retry.infra {allowed} is used up" if allowed else "spec.retry.infra is 0"
    return failure.model_copy(update={"message": f"{failure.message} (failure {failures}; {tried})", "retriable": True})


def record_stop(builder: PlanBuilder, attempt: AttemptStatus, pods: Sequence[PodView]) -> None:
    """The pods were asked to stop and did, with a checkpoint: no failure."""
    why = _disruption(pods) or attempt.message  # the pod may be gone before the last one of its gang has ended
    why = f". {why}" if why else ""
    step = f" at step {attempt.last_step}" if attempt.last_step is not None else ""
    attempt.reason, attempt.message = Reason.PREEMPTED, f"The pods of stage {attempt.stage} were stopped{step}{why}"
    _close(builder, attempt, "Stopped")
    builder.emit_event("Warning", Reason.PREEMPTED, "Resume", f"{attempt.message}. {_resumes(builder, attempt.stage)}")


def note_disruption(attempt: AttemptStatus, pods: Sequence[PodView]) -> None:
    """Keep in a running attempt why one of its pods was asked to stop, until all run again."""
    attempt.message = _disruption(pods) or attempt.message


def _disruption(pods: Sequence[PodView]) -> str | None:
    asked = [pod for pod in pods if pod.disrupted is not None or pod.deletion_asked is not None]
    if not asked:
        return None
    pod = next((pod for pod in asked if pod.disrupted is not None), asked[0])
    return f"Pod {pod.name} was {f'disrupted ({pod.disrupted})' if pod.disrupted is not None else 'deleted'}"


def stop(builder: PlanBuilder, attempt: AttemptStatus, reason: Reason, message: str) -> None:
    """This operator gives the attempt up: its children are deleted."""
    attempt.reason, attempt.message = reason, message
    _close(builder, attempt, "Stopped")


def _close(builder: PlanBuilder, attempt: AttemptStatus, how: str) -> None:
    attempt.outcome = how  # type: ignore[assignment]
    attempt.finished = stamp(builder.now)
    if attempt.stage == "train" and how != "Succeeded" and attempt.last_step is not None:
        attempt.steps_lost = max(0, attempt.last_step - (sealed_step(builder, "train") or 0))
    builder.status_first = True
