"""The end of a job and what comes after it: staying finished, cleaning up, running once more."""

from __future__ import annotations

from finetune_api.effective import PlatformDefaults
from finetune_api.operator_state import EARLIER_RUNS, OperatorState
from finetune_api.status import FailureStatus, FineTuneJobStatus

from finetune_operator.domain.names import run_of
from finetune_operator.domain.observed import JobView
from finetune_operator.domain.plan_builder import Delete, JobState, PlanBuilder
from finetune_operator.domain.reasons import Reason
from finetune_operator.domain.times import human, seconds_of, stamp

KEPT_ATTEMPTS = 3
"""Jobs of a stage whose pods are kept for their logs."""


def finished(status: FineTuneJobStatus) -> bool:
    return status.phase in ("Completed", "Failed")


def fail(builder: PlanBuilder, failure: FailureStatus) -> None:
    """End the job: never retried, and nothing but a new runToken starts it again."""
    builder.status.failure = failure
    builder.status.completion_time = stamp(builder.now)
    stage = f"in stage {failure.stage}, " if failure.stage else ""
    advice = f". {failure.remedy[0].upper()}{failure.remedy[1:]}" if failure.remedy else ""
    message = failure.message + advice
    builder.job_state = JobState("Failed", failure.code, message)
    builder.emit_event("Warning", Reason.FAILED, "Finish", f"Failed {stage}{failure.code}: {message}")


def complete(builder: PlanBuilder) -> None:
    """Every stage is done."""
    status = builder.status
    status.completion_time = stamp(builder.now)
    started = seconds_of(status.start_time)
    took = f" after {human(builder.now - started)}" if started is not None else ""
    where = status.artifacts.uri if status.artifacts is not None else builder.wanted.output.uri
    message = f"The result is at {where}"
    builder.job_state = JobState("Completed", Reason.COMPLETED, message)
    builder.emit_event("Normal", Reason.COMPLETED, "Finish", f"Completed{took}. {message}")


def planned(builder: PlanBuilder, headline: str) -> None:
    """`mode: Plan`: the plan is the result. The one end from which a changed mode goes on."""
    builder.status.completion_time = stamp(builder.now)
    message = f"The plan is made: {headline}. Set spec.mode: Run to train"
    builder.job_state = JobState("Completed", Reason.PLANNED, message)
    builder.emit_event("Normal", Reason.PLANNED, "Finish", message)


def resume_from_plan(builder: PlanBuilder) -> None:
    """A job that was only planned trains when its mode says so, with the data that is prepared."""
    status = builder.status
    if status.phase == "Completed" and status.reason == Reason.PLANNED and builder.wanted.mode == "Run":
        status.phase, status.completion_time = "Queued", None


def start_again(builder: PlanBuilder) -> None:
    """A new runToken counts once the run before has ended; it does not cut a run short. One that waits for its first approval
    has nothing to lose, and without another run no other plan would come of it."""
    status = builder.status
    waits = status.phase == "AwaitingApproval" and not status.used.train_seconds
    if not (finished(status) or waits):
        return
    earlier = builder.state.earlier_runs or []
    names = [run_of(builder.metadata.uid, builder.wanted.run_token, again) for again in range(len(earlier) + 1)]
    if status.run is None or status.run in names:
        return
    # A token may come back: its run must not find the folder and the children of the one that had it before.
    run = next(name for name in names if name not in earlier)
    builder.emit_event(
        "Normal",
        Reason.RERUN,
        "Start",
        f"Run {run} begins, since spec.runToken changed; run {status.run} {status.phase}",
    )
    builder.status = FineTuneJobStatus(run=run, start_time=stamp(builder.now))
    builder.state = OperatorState(earlier_runs=[*earlier, status.run][-EARLIER_RUNS:])
    # Nothing of the run before may be taken for this one's, whatever happens in between.
    builder.status_first = True


def stay_finished(builder: PlanBuilder) -> None:
    """Deleting or expiring children never starts a finished job again."""
    status = builder.status
    if not finished(status) or status.phase is None:
        return
    builder.job_state = JobState(status.phase, status.reason or "", status.message or "")


def clean_up(builder: PlanBuilder) -> None:
    """Delete Jobs that are not needed: of attempts that were given up, of earlier runs, of old attempts, and all of them when a
    finished job's time is up."""
    if builder.job_state is not None and builder.job_state.phase in ("Completed", "Failed"):
        stale = _after_the_end(builder)
    else:
        stale = _on_the_way(builder)
    builder.delete += [Delete(job.name, job.uid) for job in stale if not job.deleting]
    for refusal in builder.observed.refusals.values():
        if refusal.verb == "delete":
            builder.retry("blocked:delete")
            if not refusal.due:
                builder.delete = [delete for delete in builder.delete if delete.name != refusal.name]


def _after_the_end(builder: PlanBuilder) -> list[JobView]:
    # Nothing is deleted before the end stands in the status: a Job that is gone would be taken for evicted.
    if not finished(builder.before):
        builder.requeue_after(0)
        return []
    jobs = list(builder.observed.jobs.values())
    ttl, ended = builder.wanted.ttl_seconds_after_finished, seconds_of(builder.status.completion_time)
    if ttl is None:  # a finished job's spec is not resolved, so the frozen default is read here
        ttl = PlatformDefaults.model_validate(builder.state.defaults or {}).ttl_seconds_after_finished
    if ttl is not None and ended is not None and jobs:
        left = ended + ttl - builder.now
        if left <= 0:
            return jobs
        builder.requeue_after(left)
    return [job for job in jobs if job.alive]


def _on_the_way(builder: PlanBuilder) -> list[JobView]:
    jobs = builder.observed.jobs.values()
    current = {attempt.job for attempt in builder.attempts if attempt.outcome == "Running"}
    # A Job that no attempt under way knows was given up, or made just before a crash and not wanted any more since.
    stale = {job.name: job for job in jobs if job.run != builder.run or (job.name not in current and job.alive)}
    for stage in {job.stage for job in jobs}:
        of_stage = sorted((j for j in jobs if j.stage == stage and j.run == builder.run), key=lambda j: j.attempt)
        stale |= {job.name: job for job in of_stage[:-KEPT_ATTEMPTS] if job.name not in current}
    return list(stale.values())
