"""Beginning an attempt at a stage: its place in the book, and the objects it needs."""

from __future__ import annotations

from typing import Any

from finetune_api.status import AttemptStatus, FailureStatus, Phase, Stage

from finetune_operator.domain.admission import plan_admission
from finetune_operator.domain.attempts import budget
from finetune_operator.domain.attempts.completion import fail
from finetune_operator.domain.attempts.history import delay, trimmed
from finetune_operator.domain.builders.job import job as build_job
from finetune_operator.domain.builders.run_config import MAX_BYTES, run_config
from finetune_operator.domain.builders.service import service
from finetune_operator.domain.names import child_name
from finetune_operator.domain.observed import Refusal
from finetune_operator.domain.plan_builder import JobState, PlanBuilder
from finetune_operator.domain.reasons import Code, Reason
from finetune_operator.domain.times import human, seconds_of

PHASES: dict[Stage, Phase] = {"prepare": "Preparing", "train": "Queued", "publish": "Publishing"}
"""Phase of a stage whose pods do not all run yet."""
_REFUSED_LOOK_AGAIN_S = 5.0
_GONE_LOOK_AGAIN_S = 5.0


def suspended(draft: PlanBuilder, stage: Stage, message: str) -> None:
    draft.situation = JobState("Suspended", Reason.SUSPENDED, f"{message}; spec.suspend: false goes on", suspended=True)


def spent(draft: PlanBuilder, sentence: str) -> None:
    """The budget is used up, and no pod runs any more."""
    kept = draft.status.last_checkpoint
    checkpoint = f"The checkpoint of step {kept.step} is kept" if kept is not None else "There is no checkpoint yet"
    message = f"{sentence}. {checkpoint}; once spec.budget allows more, the job goes on from there"
    draft.situation = JobState("Suspended", Reason.BUDGET_EXHAUSTED, message, problem=True, suspended=True)


def enter(draft: PlanBuilder, stage: Stage, last: AttemptStatus | None) -> None:
    """Write the next attempt into the book, unless it is too early or the job is suspended."""
    if stage == "train":
        plan_admission.make_plan(
            draft
        )  # of a suspended job too: whoever changes compute meanwhile wants to see what comes of it
    if draft.wanted.suspend:
        suspended(draft, stage, f"Suspended before stage {stage}")
        return
    if stage == "train":
        plan_admission.hold(draft)
        if draft.situation is None and (sentence := budget.exhausted(draft)) is not None:
            spent(draft, sentence)
        if draft.situation is not None:
            return
    number = 1
    if last is not None:
        number = last.number + 1
        ended = seconds_of(last.finished) or draft.now
        pause = delay(draft.attempts, last, draft.status.infra_failures or 0, draft.config.retry_delay)
        left = ended + pause - draft.now
        if 0 < left <= pause:  # a longer wait than the pause itself is a clock that was set back
            draft.requeue_after(left)
            reason = Reason.RETRYING if last.outcome == "Failed" else Reason.RESUMING
            message = f"Stage {stage} begins again in {human(left + 1)}. Before: {last.message or last.reason}"
            draft.situation = JobState(PHASES[stage], reason, message)
            return
    name = child_name(draft.metadata.name, draft.run, stage, number)
    draft.attempts.append(AttemptStatus(stage=stage, number=number, job=name))
    draft.status.attempts = trimmed(draft.attempts)
    draft.emit_event("Normal", Reason.STAGE_STARTED, "Start", f"Stage {stage} begins: Job {name}")


def create(draft: PlanBuilder, stage: Stage, entry: AttemptStatus) -> None:
    """Ask for the attempt's objects. What was refused before is asked for again, and told."""
    waiting = f"Waiting for the pods of stage {stage} to start"
    draft.situation = JobState(PHASES[stage], Reason.STARTING, waiting)
    if stage == "train":
        draft.status.gpus = draft.spec.compute.nodes * (draft.spec.compute.gpus_per_node or 0)
    if any(job.alive for job in draft.seen.jobs.values()):
        # Given up, and deleted in this look: two gangs of one job never stand side by side, whatever crashes in between.
        draft.requeue_after(_GONE_LOOK_AGAIN_S)
        return
    config = run_config(draft.metadata, draft.spec, draft.run, stage, entry.number, draft.status.plan)
    if len(config.encode()) > MAX_BYTES:
        size = f"{len(config.encode())} bytes, more than the {MAX_BYTES} that its pods can hold"
        message = f"spec: the run config of stage {stage} has {size}"
        remedy = "Shorten spec.data: name a folder instead of many files, or shorten the template"
        fail(draft, FailureStatus(code=Code.INVALID_SPEC, stage=stage, message=message, remedy=remedy))
        entry.outcome, entry.reason = "Failed", Code.INVALID_SPEC
        return
    if not _told_refusal(draft, stage, entry):
        ensure(draft, stage, entry, again=True)  # the settings may have changed since a refusal
        draft.create.append(
            build_job(
                draft.metadata,
                draft.spec,
                draft.run,
                stage,
                entry.number,
                config,
                previous=_previous(draft, entry),
                wanted=draft.wanted,
            )
        )


def ensure(draft: PlanBuilder, stage: Stage, entry: AttemptStatus, *, again: bool = False) -> bool:
    """Ask for the attempt's Service, unless it is known to exist. `again`: whatever is known.
    Returns whether nothing is missing. A refusal is told, and then settles where the job stands."""
    known, before = draft.seen.known, len(draft.create)
    if stage == "train" and (again or ("Service", entry.job) not in known):
        draft.create.append(service(draft.metadata, draft.run, entry.number))
    missing = len(draft.create) > before
    if missing and draft.seen.refusals:
        _told_refusal(draft, stage, entry)
    return not missing


def _told_refusal(draft: PlanBuilder, stage: Stage, entry: AttemptStatus) -> bool:
    """Tell of a refusal, if there was one; what was refused is asked for again. True when the job ends by it."""
    refusal = next((r for (_, name), r in draft.seen.refusals.items() if name == entry.job), None)
    return refusal is not None and _refused(draft, stage, entry, refusal)


def _previous(draft: PlanBuilder, entry: AttemptStatus) -> dict[str, Any] | None:
    before = [a for a in draft.attempts if a.stage == entry.stage and a.number < entry.number]
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


def _refused(draft: PlanBuilder, stage: Stage, entry: AttemptStatus, refusal: Refusal) -> bool:
    """Tell of a refusal; True when the job ends by it."""
    if refusal.code in (400, 422):
        fail(
            draft,
            FailureStatus(
                code=Code.INVALID_SPEC,
                stage=stage,
                message=f"The API server refuses the {refusal.kind} of stage {stage}: {refusal.message}",
                remedy="Correct spec.pods and spec.compute, and set a new spec.runToken to run again",
            ),
        )
        entry.outcome, entry.reason = "Failed", Code.INVALID_SPEC
        return True
    if refusal.code == 409:
        message = f"{refusal.kind} {refusal.name} exists and belongs to something else. Delete it; the job goes on when it is gone"
        reason = Reason.NAME_TAKEN
    else:
        message = f"The API server does not allow the {refusal.kind} of stage {stage}: {refusal.message}"
        reason = Reason.QUOTA_EXCEEDED if "exceeded quota" in refusal.message else Reason.NOT_ALLOWED
    draft.situation = JobState(PHASES[stage], reason, message, problem=True)
    draft.requeue_after(_REFUSED_LOOK_AGAIN_S)
    return False
