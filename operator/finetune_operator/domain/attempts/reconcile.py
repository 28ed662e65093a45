"""Bring the attempt that is under way one step further, or start the next one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from finetune_api.contract import LABEL_UID
from finetune_api.status import AttemptStatus, Phase, Stage

from finetune_operator.domain.admission import plan_admission
from finetune_operator.domain.attempts import budget, end, standing, start
from finetune_operator.domain.attempts.completion import complete
from finetune_operator.domain.attempts.history import latest, stage_to_do
from finetune_operator.domain.attempts.standing import Standing, classify
from finetune_operator.domain.attempts.steps import Step, Wish, decide
from finetune_operator.domain.builders.job import outdated
from finetune_operator.domain.diagnosis.failures import (
    classify_failure,
    evicted_for_own_usage,
    is_lost,
    node_check_due,
    node_lost,
    start_timeout,
    vanished,
)
from finetune_operator.domain.diagnosis.pending_pods import Diagnosis, diagnose
from finetune_operator.domain.names import ANNOTATION_HELD
from finetune_operator.domain.observed import JobView, PodView, Read
from finetune_operator.domain.plan_builder import WAITING_PHASE, JobState, Patch, PlanBuilder
from finetune_operator.domain.reasons import Reason
from finetune_operator.domain.times import human, stamp

RUNNING: dict[Stage, tuple[Phase, Reason]] = {
    "prepare": ("Preparing", Reason.PREPARING),
    "train": ("Training", Reason.TRAINING),
    "publish": ("Publishing", Reason.PUBLISHING),
}
_NODE_CHECK_S = 30.0
_SOON_S = 3.0
_DELETING_CHECK_S = 5.0


@dataclass(slots=True)
class Current:
    """The attempt under way with what was observed of it."""

    builder: PlanBuilder
    stage: Stage
    attempt: AttemptStatus
    job: JobView | None
    pods: tuple[PodView, ...]
    standing: Standing = Standing.NOT_CREATED
    diagnosis: Diagnosis | None = None
    spent: str | None = None
    """Why the budget allows no more training."""

    @property
    def existing_job(self) -> JobView:
        assert self.job is not None, f"{self.standing} needs a Job"
        return self.job


def reconcile_attempts(builder: PlanBuilder) -> None:
    """Go through the stages until the job's state is settled."""
    while builder.job_state is None:
        stage = stage_to_do(builder.attempts)
        if stage is None:
            complete(builder)
            return
        attempt = latest(builder.attempts, stage)
        if attempt is None or attempt.outcome != "Running":
            start.next_attempt(builder, stage, attempt)
        else:
            _continue(builder, stage, attempt)


def _continue(builder: PlanBuilder, stage: Stage, attempt: AttemptStatus) -> None:
    job = builder.observed.jobs.get(attempt.job)
    pods = builder.observed.pods.get(attempt.job, ())
    if attempt.started is None:
        began = [t for pod in pods if (t := pod.running_since or (pod.ended and pod.ended.started))]
        attempt.started = stamp(min(began)) if began else None
    end.read_messages(builder, attempt, (*pods, *builder.observed.departed.get(attempt.job, ())))
    # The node lifecycle controller takes a pod's readiness when its node is silent; the node has the last word.
    doubtful = (pod.node for pod in pods if pod.not_ready_since is not None and pod.node and not pod.over)
    builder.reads |= {Read("node", node) for node in doubtful}
    current = Current(
        builder, stage, attempt, job, pods, classify(attempt, job, pods, builder.now, builder.observed.nodes)
    )
    if any(pod.ended is not None and not pod.over for pod in pods):
        builder.requeue_after(standing.SIDECAR_S + 1)
    step = decide(current.standing, _wish(current))
    _STEPS[step](current)
    if attempt.outcome != "Running" and (sidecar := standing.kept_running(pods, builder.now)):
        attempt.message = ". ".join(filter(None, (attempt.message, sidecar)))[:1000]


def _wish(current: Current) -> Wish:
    builder, attempt, job = current.builder, current.attempt, current.job
    idle = current.standing in (Standing.NOT_CREATED, Standing.QUEUED, Standing.HELD)
    # Other settings count only where the Job is created again before it is released.
    unreleased = attempt.started is None or idle
    if current.stage == "train" and unreleased and _plan_follows_spec(current):
        plan_admission.make_plan(builder)
    if builder.wanted.suspend:
        return Wish.SUSPEND
    if current.stage == "train" and unreleased and current.standing in (*_BEFORE_RUN, Standing.RUNNING):
        plan_admission.hold(builder)
        if builder.job_state is not None:
            return Wish.WITHDRAW
    if current.stage == "train" and (sentence := budget.exhausted(builder)) is not None:
        current.spent = sentence
        return Wish.SPEND_NOTHING
    if builder.blocked is not None:
        return Wish.BLOCK
    if job is not None and outdated(job.digest, builder.wanted, current.stage) and _may_replace(current):
        return Wish.REPLACE
    return Wish.RUN


_BEFORE_RUN = (Standing.NOT_CREATED, Standing.QUEUED, Standing.HELD, Standing.STARTING)


def _plan_follows_spec(current: Current) -> bool:
    job = current.job
    if job is None or not outdated(job.digest, current.builder.wanted, current.stage):
        return True
    return current.standing == Standing.HELD or (current.standing == Standing.QUEUED and job.managed_elsewhere)


def _may_replace(current: Current) -> bool:
    """Settings of a Job count before its pods ever ran: while it is held or queued, or where its pods cannot start."""
    job, started = current.existing_job, current.attempt.started is not None
    match current.standing:
        case Standing.HELD:
            return True
        case Standing.QUEUED:
            return job.managed_elsewhere
        case Standing.STARTING:
            return not started and _diagnosed(current).problem is not None
    return False


def _diagnosed(current: Current) -> Diagnosis:
    if current.diagnosis is None:
        job, live = current.existing_job, standing.live(current.pods)
        missing = len({pod.index for pod in live} | standing.finished_ranks(current.pods)) < job.pods
        current.diagnosis = diagnose(current.builder.observed, job, live, missing, current.builder.now)
    return current.diagnosis


# What each step does.


def _create(current: Current) -> None:
    start.create(current.builder, current.stage, current.attempt)


def _show_suspended(current: Current) -> None:
    builder, stage = current.builder, current.stage
    if current.job is None:
        start.suspended(builder, stage, f"Suspended before stage {stage}")
        return
    step = end.sealed_step(builder, stage)
    checkpoint = f" with a checkpoint of step {step}" if step is not None else ""
    reached = current.attempt.last_step or 0
    lost = ""
    if stage == "train" and reached > (step or 0):
        lost = f", though it had reached step {reached} (pods save one within spec.pods.train.terminationGracePeriodSeconds)"
    start.suspended(builder, stage, f"Suspended in stage {stage}{checkpoint}{lost}")


def _show_spent(current: Current) -> None:
    assert current.spent is not None
    start.spent(current.builder, current.spent)


def _show_blocked(current: Current) -> None:
    current.builder.job_state = current.builder.blocked


def _withdraw(current: Current) -> None:
    """`plan_admission.hold` has set the state. Whatever the attempt queues with is deleted."""
    end.stop(current.builder, current.attempt, Reason.REPLACED, "Its plan was no longer accepted before its pods ran")


def _replace(current: Current) -> None:
    end.stop(current.builder, current.attempt, Reason.REPLACED, "Its settings changed before its pods ran")


def _hold(current: Current) -> None:
    builder, job = current.builder, current.existing_job
    if job.managed_elsewhere:
        _give_back(current)
        return
    builder.patch.append(
        Patch(job.name, job.uid, {"metadata": {"annotations": {ANNOTATION_HELD: "true"}}, "spec": {"suspend": True}})
    )
    _stopping(current)
    start.report_refused_change(builder, job)


def _give_back(current: Current) -> None:
    """A Job that a person suspended by hand is left as it is."""
    builder = current.builder
    if not current.existing_job.managed_elsewhere:
        _show_spent(current) if current.spent else _show_suspended(current)
        return
    why = "its budget is used up" if current.spent else "the job is suspended"
    reason = Reason.BUDGET_EXHAUSTED if current.spent else Reason.SUSPENDED
    end.stop(builder, current.attempt, reason, f"Given back to its queue, because {why}")


def _await_stop(current: Current) -> None:
    builder, job = current.builder, current.job
    if job is None or job.deleting:
        why = "is being deleted" if job is not None else f"was deleted or has lost its label {LABEL_UID}"
        builder.job_state = JobState(
            WAITING_PHASE[current.stage],
            Reason.RESUMING,
            f"Job {current.attempt.job} {why}; waiting for its pods to end",
        )
        builder.requeue_after(_DELETING_CHECK_S)
    else:
        current.spent = budget.exhausted(builder) if current.stage == "train" else None
        _stopping(current)
    _check_nodes(current)


def _take_back(current: Current) -> None:
    job = current.job
    if job is not None and job.suspended and job.held and not job.deleting and not job.managed_elsewhere:
        _release(current)
    else:
        _await_stop(current)


def _stopping(current: Current) -> None:
    why = f"{current.spent}. " if current.spent else ""
    phase, _ = RUNNING[current.stage]
    text = f"{why}The pods of stage {current.stage} are stopping; a training saves a checkpoint first"
    current.builder.job_state = JobState(phase, Reason.SUSPENDING, text)


def _await_queue(current: Current) -> None:
    start.ensure(current.builder, current.stage, current.attempt, current.existing_job)
    if current.builder.job_state is not None:
        return
    job = current.existing_job
    who = "its queue" if job.managed_elsewhere else "whoever suspended it"
    current.builder.job_state = JobState(
        WAITING_PHASE[current.stage],
        Reason.HELD_ELSEWHERE,
        f"Job {job.name} is suspended; it runs when {who} releases it",
    )


def _release(current: Current) -> None:
    """Ranks look for each other as soon as they run, so what they need is there before."""
    builder, job = current.builder, current.existing_job
    missing = start.ensure(builder, current.stage, current.attempt, job)
    if builder.job_state is not None:
        return
    if not missing:
        builder.patch.append(
            Patch(job.name, job.uid, {"metadata": {"annotations": {ANNOTATION_HELD: None}}, "spec": {"suspend": False}})
        )
    builder.job_state = start.waiting(current.stage)
    start.report_refused_change(builder, job)


def _start(current: Current) -> None:
    builder, stage = current.builder, current.stage
    _follow_progress(current)
    end.note_disruption(current.attempt, standing.since_release(current.existing_job, current.pods))
    start.ensure(builder, stage, current.attempt, current.existing_job)
    if builder.job_state is not None:
        return
    diagnosis = _diagnosed(current)
    builder.reads |= diagnosis.reads
    if diagnosis.requeue_after is not None:
        builder.requeue_after(diagnosis.requeue_after)
    _check_nodes(current)
    if _start_timed_out(current):
        return
    if diagnosis.problem is None:
        builder.retry("starting")
        builder.job_state = _too_few(current)
        return
    problem = diagnosis.problem
    builder.retry(f"pods:{problem.reason}")
    builder.job_state = JobState(WAITING_PHASE[stage], problem.reason, problem.text, problem=True)


def _start_timed_out(current: Current) -> bool:
    """spec.retry.startTimeout, from the time at which the Job was released."""
    builder, job, limit = current.builder, current.existing_job, current.builder.wanted.retry.start_seconds
    if limit is None or current.attempt.started is not None:
        return False
    left = max(job.created, job.released or 0.0) + limit - builder.now
    if left > 0:
        builder.requeue_after(left)
        return False
    problem = _diagnosed(current).problem
    end.record_failure(
        builder, current.attempt, start_timeout(current.stage, human(limit), None if problem is None else problem.text)
    )
    return True


def _too_few(current: Current) -> JobState:
    """Fewer pods run than should: some were stopped, or they start."""
    stage, pods = current.stage, current.pods
    ended = any(pod.phase == "Failed" or (pod.ended is not None and pod.ended.exit_code != 0) for pod in pods)
    # A pod that was deleted is soon gone: what was reported of it holds until all run again.
    resuming = current.attempt.started is not None and current.builder.before.reason == Reason.RESUMING
    if ended or resuming or any(pod.deletion_asked is not None for pod in pods):
        # No step: pods that still end save a later checkpoint than the last known one.
        checkpoint = " from its last checkpoint" if end.sealed_step(current.builder, stage) is not None else ""
        text = f"Pods of stage {stage} were stopped; it resumes{checkpoint}"
        return JobState(WAITING_PHASE[stage], Reason.RESUMING, text)
    if current.diagnosis is not None and current.diagnosis.note is not None:
        return JobState(WAITING_PHASE[stage], Reason.STARTING, current.diagnosis.note)
    return start.waiting(stage)


def _watch(current: Current) -> None:
    builder, stage, job = current.builder, current.stage, current.existing_job
    _follow_progress(current)
    current.attempt.message = None
    phase, reason = RUNNING[stage]
    builder.job_state = JobState(phase, reason, _running_message(job, stage), running=True)
    if stage == "train":
        budget.requeue_when_spent(builder)
    _coalesce(current)
    _check_nodes(current)


def _coalesce(current: Current) -> None:
    """That all pods run is written with their first progress value, and how they ended with the end of their Job, unless that
    is late."""
    builder, pods = current.builder, current.pods
    ended = all(pod.ended is not None and pod.ended.exit_code == 0 for pod in pods)
    moments = [pod.running_since or (pod.ended and pod.ended.finished) or 0.0 for pod in pods]
    left = max(moments, default=0.0) + _SOON_S - builder.now
    if 0 < left <= _SOON_S and (ended or builder.before.reason == Reason.STARTING):
        builder.just_started, builder.just_ended = not ended, ended
        builder.requeue_after(left)


def _follow_progress(current: Current) -> None:
    ranks = standing.live(current.pods)
    current.builder.poll = next((pod for pod in ranks if pod.index == 0 and pod.running), None)


def _check_nodes(current: Current) -> None:
    """No event comes from a node that is dead: only time shows it."""
    builder = current.builder
    due = node_check_due(current.pods, builder.observed.nodes, builder.now)
    if due is not None:
        builder.requeue_after(min(due + 1, _NODE_CHECK_S))


def _await_end(current: Current) -> None:
    phase, _ = RUNNING[current.stage]
    job = current.job
    others = "; its other pods are ending" if job is not None and job.pods > 1 else ""
    current.builder.job_state = JobState(phase, Reason.RETRYING, f"Stage {current.stage} failed{others}")
    current.builder.requeue_after(_NODE_CHECK_S)


def _end_vanished(current: Current) -> None:
    """A Job that is missing in the cache may only have lost its labels: the API server has the last word."""
    builder, name = current.builder, current.attempt.job
    exists = builder.observed.jobs_read.get(name)
    if exists is None:
        builder.reads.add(Read("job", name))
        builder.requeue_after(_DELETING_CHECK_S)
        builder.job_state = end.unchanged(builder, current.stage)
    elif exists:
        message = f"Job {name} has lost its finetune.dev labels, so its pods cannot be followed"
        builder.block(current.stage, Reason.NAME_TAKEN, f"{message}. Restore them, or delete the Job")
    elif any(pod.index == 0 and pod.ended is not None and pod.ended.exit_code == 0 for pod in _all_pods(current)):
        # Rank 0 exits with 0 when what the stage makes is sealed, whatever happened to its Job since.
        end.succeed(builder, current.stage, current.attempt, _all_pods(current))
    else:
        end.record_failure(builder, current.attempt, vanished(current.stage, f"Job {name}"))


def _all_pods(current: Current) -> tuple[PodView, ...]:
    """Also those that ended and are gone since the last reconcile."""
    return (*current.pods, *current.builder.observed.departed.get(current.attempt.job, ()))


def _end_stopped(current: Current) -> None:
    """A pod that was evicted for its own usage would be evicted again, although it saved a checkpoint."""
    own = evicted_for_own_usage(current.existing_job, current.pods, current.stage)
    if own is not None:
        end.record_failure(current.builder, current.attempt, own, current.pods)
    else:
        end.record_stop(current.builder, current.attempt, _all_pods(current))


def _end_failed(current: Current) -> None:
    builder, stage, job = current.builder, current.stage, current.job
    if job is not None and not end.all_ends_known(builder, stage, job, current.pods):
        return
    if job is None:
        end.record_failure(builder, current.attempt, vanished(stage, f"Job {current.attempt.job}"))
        return
    pods = _all_pods(current)
    end.record_failure(builder, current.attempt, classify_failure(job, pods, stage, builder.now), pods)


def _end_lost(current: Current) -> None:
    """A rank that knows its cause decides before the node does."""
    builder, stage, job = current.builder, current.stage, current.job
    lost = next(pod for pod in current.pods if is_lost(pod, builder.now, builder.observed.nodes))
    failure = node_lost(stage, lost)
    if job is not None and any(standing.failed(pod) for pod in current.pods):
        known = classify_failure(job, current.pods, stage, builder.now)
        failure = known if known.kind == "fatal" else failure
    end.record_failure(builder, current.attempt, failure, current.pods)


def _end_complete(current: Current) -> None:
    end.succeed(
        current.builder, current.stage, current.attempt, _all_pods(current), completed=current.existing_job.complete
    )


def _running_message(job: JobView, stage: Stage) -> str:
    match stage:
        case "prepare":
            return "Reading and checking the data"
        case "train":
            return f"Training on {job.pods} node{'s' if job.pods > 1 else ''}"
        case "publish":
            return "Publishing the result"


_STEPS: Mapping[Step, Callable[[Current], None]] = {
    Step.CREATE: _create,
    Step.RELEASE: _release,
    Step.START: _start,
    Step.WATCH: _watch,
    Step.HOLD: _hold,
    Step.GIVE_BACK: _give_back,
    Step.WITHDRAW: _withdraw,
    Step.REPLACE: _replace,
    Step.AWAIT_QUEUE: _await_queue,
    Step.AWAIT_STOP: _await_stop,
    Step.TAKE_BACK: _take_back,
    Step.AWAIT_END: _await_end,
    Step.SHOW_SUSPENDED: _show_suspended,
    Step.SHOW_SPENT: _show_spent,
    Step.SHOW_BLOCKED: _show_blocked,
    Step.END_VANISHED: _end_vanished,
    Step.END_STOPPED: _end_stopped,
    Step.END_LOST: _end_lost,
    Step.END_FAILED: _end_failed,
    Step.END_COMPLETE: _end_complete,
}
