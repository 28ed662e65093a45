"""The end of a job and what comes after it: staying finished, cleaning up, running once more."""

from __future__ import annotations

from finetune_api.effective import PlatformDefaults
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


def fail(draft: PlanBuilder, failure: FailureStatus) -> None:
    """End the job: never retried, and nothing but a new runToken starts it again."""
    draft.status.failure = failure
    draft.status.completion_time = stamp(draft.now)
    stage = f"in stage {failure.stage}, " if failure.stage else ""
    advice = f". {failure.remedy[0].upper()}{failure.remedy[1:]}" if failure.remedy else ""
    message = failure.message + advice
    draft.situation = JobState("Failed", failure.code, message)
    draft.emit_event("Warning", Reason.FAILED, "Finish", f"Failed {stage}{failure.code}: {message}")


def complete(draft: PlanBuilder) -> None:
    """Every stage is done."""
    status = draft.status
    status.completion_time = stamp(draft.now)
    started = seconds_of(status.start_time)
    took = f" after {human(draft.now - started)}" if started is not None else ""
    where = status.artifacts.uri if status.artifacts is not None else draft.wanted.output.uri
    message = f"The result is at {where}"
    draft.situation = JobState("Completed", Reason.COMPLETED, message)
    draft.emit_event("Normal", Reason.COMPLETED, "Finish", f"Completed{took}. {message}")


def planned(draft: PlanBuilder, headline: str) -> None:
    """`mode: Plan`: the plan is the result. The one end from which a changed mode goes on."""
    draft.status.completion_time = stamp(draft.now)
    message = f"The plan is made: {headline}. Set spec.mode: Run to train"
    draft.situation = JobState("Completed", Reason.PLANNED, message)
    draft.emit_event("Normal", Reason.PLANNED, "Finish", message)


def go_on_from_the_plan(draft: PlanBuilder) -> None:
    """A job that was only planned trains when its mode says so, with the data that is prepared."""
    status = draft.status
    if status.phase == "Completed" and status.reason == Reason.PLANNED and draft.wanted.mode == "Run":
        status.phase, status.completion_time = "Queued", None


def start_again(draft: PlanBuilder) -> None:
    """A new runToken counts once the run before has ended; it does not cut a run short. One that waits for its first approval
    has nothing to lose, and without another run no other plan would come of it."""
    status = draft.status
    run = run_of(draft.metadata.uid, draft.wanted.run_token)
    waits = status.phase == "AwaitingApproval" and not status.train_seconds
    if not (finished(status) or waits) or status.run == run:
        return
    draft.emit_event(
        "Normal",
        Reason.RERUN,
        "Start",
        f"Run {run} begins, since spec.runToken changed; run {status.run} {status.phase}",
    )
    draft.status = FineTuneJobStatus()
    # Nothing of the run before may be taken for this one's, whatever happens in between.
    draft.status_first = True


def stay_finished(draft: PlanBuilder) -> None:
    """Deleting or expiring children never starts a finished job again."""
    status = draft.status
    if not finished(status) or status.phase is None:
        return
    draft.situation = JobState(status.phase, status.reason or "", status.message or "")


def clean_up(draft: PlanBuilder) -> None:
    """Delete children that nobody needs: of attempts that were given up, of earlier runs, of old attempts, and all of them
    when a finished job's time is up."""
    if draft.situation is not None and draft.situation.phase in ("Completed", "Failed"):
        stale = _after_the_end(draft)
    else:
        stale = _on_the_way(draft)
    for job in stale:
        if job.deleting:
            continue
        draft.delete.append(Delete("Job", job.name, job.uid))
        if job.stage == "train":
            draft.delete.append(Delete("Service", job.name))
    # Of attempts whose Job was never made, or is gone.
    without_job = {attempt.job for attempt in draft.attempts if attempt.outcome != "Running"} - draft.seen.jobs.keys()
    for name in sorted(without_job):
        if ("Service", name) in draft.seen.known:
            draft.delete.append(Delete("Service", name))


def _after_the_end(draft: PlanBuilder) -> list[JobView]:
    # Nothing is deleted before the end stands in the status: a Job that is gone would be taken for evicted.
    if not finished(draft.before):
        draft.requeue_after(0)
        return []
    jobs = list(draft.seen.jobs.values())
    ttl, ended = draft.wanted.ttl_seconds_after_finished, seconds_of(draft.status.completion_time)
    if ttl is None:  # a finished job's spec is not resolved, so the frozen default is read here
        ttl = PlatformDefaults.model_validate(draft.status.defaults or {}).ttl_seconds_after_finished
    if ttl is not None and ended is not None and jobs:
        left = ended + ttl - draft.now
        if left <= 0:
            return jobs
        draft.requeue_after(left)
    return [job for job in jobs if job.alive]


def _on_the_way(draft: PlanBuilder) -> list[JobView]:
    jobs = draft.seen.jobs.values()
    current = {attempt.job for attempt in draft.attempts if attempt.outcome == "Running"}
    # A Job that no attempt under way knows was given up, or made just before a crash and not wanted any more since.
    stale = {job.name: job for job in jobs if job.run != draft.run or (job.name not in current and job.alive)}
    for stage in {job.stage for job in jobs}:
        of_stage = sorted((j for j in jobs if j.stage == stage and j.run == draft.run), key=lambda j: j.attempt)
        stale |= {job.name: job for job in of_stage[:-KEPT_ATTEMPTS] if job.name not in current}
    return list(stale.values())
