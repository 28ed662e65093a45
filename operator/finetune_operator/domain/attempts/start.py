"""Start an attempt at a stage: its entry in the history, and the objects that it needs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from finetune_api.status import AttemptStatus, FailureStatus, Stage

from finetune_operator.domain.admission import plan_admission
from finetune_operator.domain.attempts import budget
from finetune_operator.domain.attempts.completion import fail
from finetune_operator.domain.attempts.history import delay, latest, nodes_to_avoid, trimmed
from finetune_operator.domain.attempts.memory import planned_host_memory
from finetune_operator.domain.attempts.standing import has_ended
from finetune_operator.domain.builders.job import job as build_job
from finetune_operator.domain.builders.run_config import MAX_BYTES, run_config
from finetune_operator.domain.builders.service import service
from finetune_operator.domain.diagnosis.failures import is_lost
from finetune_operator.domain.names import child_name
from finetune_operator.domain.observed import JobView, PodView, Refusal
from finetune_operator.domain.plan_builder import WAITING_PHASE, JobState, PlanBuilder
from finetune_operator.domain.reasons import Code, Reason
from finetune_operator.domain.times import human, seconds_of

_CHECK_PODS_S = 5.0


def waiting(stage: Stage) -> JobState:
    """Nothing is known to be wrong."""
    return JobState(WAITING_PHASE[stage], Reason.STARTING, f"Waiting for the pods of stage {stage} to start")


def suspended(builder: PlanBuilder, stage: Stage, message: str) -> None:
    """Suspended is what it says only when no pod runs any more."""
    if pods := still_running(builder):
        builder.job_state = JobState(
            WAITING_PHASE[stage], Reason.SUSPENDING, f"Suspended; waiting for pod {pods[0].name} to end"
        )
        builder.requeue_after(_CHECK_PODS_S)
        return
    text = f"{message}; set spec.suspend: false to resume"
    builder.job_state = JobState("Suspended", Reason.SUSPENDED, text, suspended=True)


def spent(builder: PlanBuilder, sentence: str) -> None:
    """The budget is used up, and no pod runs any more."""
    kept = builder.status.last_checkpoint
    checkpoint = f"The checkpoint of step {kept.step} is kept" if kept is not None else "There is no checkpoint yet"
    message = f"{sentence}. {checkpoint}; the job resumes once spec.budget allows more"
    builder.job_state = JobState("Suspended", Reason.BUDGET_EXHAUSTED, message, problem=True, suspended=True)


def still_running(builder: PlanBuilder, attempt: str | None = None) -> list[PodView]:
    """Pods of this job that run, but for those of `attempt`. A pod on a node that was declared lost does not count: the fence
    keeps it from sealing anything."""
    lost = {(a.job, a.node) for a in builder.attempts if a.reason == Reason.NODE_LOST}
    return [
        pod
        for name, pods in builder.observed.pods.items()
        if name != attempt
        for pod in pods
        if not has_ended(pod, builder.now)
        and not is_lost(pod, builder.now, builder.observed.nodes)
        and (name, pod.node) not in lost
    ]


def next_attempt(builder: PlanBuilder, stage: Stage, last: AttemptStatus | None) -> None:
    """Add the next attempt to the history, unless it is too early or something holds the job."""
    if _state_lost(builder, stage):
        return
    if stage == "train":
        plan_admission.make_plan(builder)  # of a suspended job too: who changes compute meanwhile sees what comes of it
    if builder.wanted.suspend:
        suspended(builder, stage, f"Suspended before stage {stage}")
        return
    if stage == "train":
        plan_admission.hold(builder)
        if builder.job_state is None and (sentence := budget.exhausted(builder)) is not None:
            spent(builder, sentence)
        if builder.job_state is not None:
            return
    if builder.blocked is not None:
        builder.job_state = builder.blocked
        return
    number = 1 if last is None else last.number + 1
    name = child_name(builder.metadata.name, builder.run, stage, number)
    created = builder.observed.jobs.get(name)
    if last is not None and (created is None or not created.alive):  # one from before a crash has waited already
        ended = seconds_of(last.finished) or builder.now
        pause = delay(builder.attempts, last, builder.state.infra_failures, builder.config.retry_delay)
        left = ended + pause - builder.now
        if 0 < left <= pause + 1:  # a longer wait than the pause itself is a clock that was set back
            builder.requeue_after(left)
            reason = Reason.RETRYING if last.outcome == "Failed" else Reason.RESUMING
            message = f"Stage {stage} starts again in {human(left + 1)}. Before: {last.message or last.reason}"
            builder.job_state = JobState(WAITING_PHASE[stage], reason, message)
            return
    if _waits_for_pods(builder, stage, name):
        return
    builder.attempts.append(AttemptStatus(stage=stage, number=number, job=name))
    builder.status.attempts = trimmed(builder.attempts)
    builder.emit_event("Normal", Reason.STAGE_STARTED, "Start", f"Stage {stage} starts: Job {name}")


def _state_lost(builder: PlanBuilder, stage: Stage) -> bool:
    """An older version, which does not know status.state, has removed what prepare found out. Prepare finds its sealed files and
    reports it again."""
    before, prepared = builder.before, latest(builder.attempts, "prepare")
    recorded = latest(before.attempts or [], "prepare")
    if stage == "prepare" or prepared is None or recorded is None or recorded.outcome != "Succeeded":
        return False
    if before.state is not None or before.defaults is not None:
        return False
    prepared.outcome, prepared.reason = "Stopped", Reason.RESULT_LOST
    prepared.message = "status.state was removed by a version that does not know it"
    builder.status_first = True
    return True


def _waits_for_pods(builder: PlanBuilder, stage: Stage, name: str) -> bool:
    """Two gangs of one job never run side by side, whatever crashed, was deleted or was orphaned before."""
    pods = still_running(builder, name)
    if not pods and not any(job.alive and job.name != name for job in builder.observed.jobs.values()):
        return False
    what = f"pod {pods[0].name}" if pods else "the Job of an earlier attempt"
    builder.job_state = JobState(
        WAITING_PHASE[stage], Reason.RESUMING, f"Waiting for {what} to end before stage {stage} starts"
    )
    builder.requeue_after(_CHECK_PODS_S)
    return True


def create(builder: PlanBuilder, stage: Stage, attempt: AttemptStatus) -> None:
    """Create the attempt's objects. What was refused is tried again when its backoff has passed."""
    if stage == "train":
        builder.status.gpus = builder.spec.compute.nodes * (builder.spec.compute.gpus_per_node or 0)
    if _waits_for_pods(builder, stage, attempt.job):
        return
    builder.job_state = waiting(stage)
    if _refused(builder, stage, attempt) is not None:
        return
    config = run_config(builder.metadata, builder.spec, builder.run, stage, attempt.number, builder.status.plan)
    if (size := len(config.encode())) > MAX_BYTES:
        message = (
            f"spec: the run config of stage {stage} has {size} bytes, more than the {MAX_BYTES} that a pod can hold"
        )
        remedy = "Shorten spec.data: name a folder instead of many files, or shorten the template"
        attempt.outcome, attempt.reason = "Failed", Code.INVALID_SPEC
        fail(builder, FailureStatus(code=Code.INVALID_SPEC, stage=stage, message=message, remedy=remedy))
        return
    builder.create.append(
        build_job(
            builder.metadata,
            builder.spec,
            builder.run,
            stage,
            attempt.number,
            config,
            previous=_previous(builder, attempt),
            wanted=builder.wanted,
            checkpoint_seconds=builder.state.checkpoint_seconds,
            avoided_nodes=nodes_to_avoid(builder.attempts),
            host_memory=planned_host_memory(builder, builder.spec) if stage == "train" else None,
        )
    )


def ensure(builder: PlanBuilder, stage: Stage, attempt: AttemptStatus, job: JobView) -> bool:
    """Create the Service of a gang, unless it is known to exist. Returns whether it is missing; a refusal settles the job's
    state."""
    if stage != "train" or job.pods == 1 or ("Service", attempt.job) in builder.observed.known:
        return False
    if _refused(builder, stage, attempt) is None:
        builder.create.append(service(builder.metadata, builder.run, attempt.number, job.uid))
    return True


def _refused(builder: PlanBuilder, stage: Stage, attempt: AttemptStatus) -> Refusal | None:
    """Report a refusal. Returns it while its backoff lasts."""
    refusal = next(
        (r for r in builder.observed.refusals.values() if r.name == attempt.job and r.verb == "create"), None
    )
    if refusal is None:
        return None
    reason, text = refusal_text(refusal)
    builder.block(stage, reason, text)
    return None if refusal.due else refusal


def report_refused_change(builder: PlanBuilder, job: JobView) -> None:
    """The Job stays as it was: show why, in the phase that is true. The change is tried again when its backoff has passed."""
    refusal = builder.observed.refusals.get(("Job", job.name))
    if refusal is None or refusal.verb != "change" or builder.job_state is None:
        return
    reason, text = refusal_text(refusal)
    state = builder.job_state
    builder.job_state = replace(state, reason=reason, message=text, problem=True)
    builder.retry(f"blocked:{reason}")
    if not refusal.due:
        builder.patch = [patch for patch in builder.patch if patch.name != job.name]


def report_refused_deletion(builder: PlanBuilder) -> None:
    """A Job that was given up, and whose pods may run or be released, since the API server refuses its deletion."""
    state = builder.job_state
    if state is None or state.phase in ("Completed", "Failed"):
        return
    for refusal in builder.observed.refusals.values():
        job = builder.observed.jobs.get(refusal.name)
        if refusal.verb == "delete" and job is not None and job.alive:
            reason, text = refusal_text(refusal)
            builder.job_state = replace(state, reason=reason, message=text, problem=True)


def refusal_text(refusal: Refusal) -> tuple[Reason, str]:
    """Reason, and what to do. Nothing of it ends a job: policies, quotas and webhooks change."""
    what = f"{refusal.verb} {refusal.kind} {refusal.name}"
    if refusal.code == 409:
        return (
            Reason.NAME_TAKEN,
            f"{refusal.kind} {refusal.name} exists and belongs to something else. Delete or rename it; the job then continues",
        )
    if "exceeded quota" in refusal.message:
        return Reason.QUOTA_EXCEEDED, (
            f"The namespace's quota does not allow the {refusal.kind}: {refusal.message}. "
            "Free quota or raise it (kubectl describe quota); the job then continues"
        )
    if refusal.code == 403:
        return Reason.NOT_ALLOWED, (
            f"The operator may not {what}: {refusal.message}. "
            "Compare its roles with the chart's, or the policy that the message names; the job then continues"
        )
    if refusal.code in (400, 422):
        return Reason.REJECTED, (
            f"The API server rejects the request to {what}: {refusal.message}. "
            "Correct spec.pods or spec.compute if it names their fields, else the admission policy; the job then continues"
        )
    return Reason.API_SERVER_ERROR, (
        f"The API server fails to {what} ({refusal.code}): {refusal.message}. "
        "Check the webhook that the message names, or the API server's log; the request is repeated"
    )


def _previous(builder: PlanBuilder, attempt: AttemptStatus) -> dict[str, Any] | None:
    before = [a for a in builder.attempts if a.stage == attempt.stage and a.number < attempt.number]
    if not before:
        return None
    last = before[-1]
    return {
        "attempt": last.number,
        "outcome": last.outcome,
        "reason": last.reason,
        "message": (last.message or "")[:500],
        "lastStep": last.last_step,
    }
