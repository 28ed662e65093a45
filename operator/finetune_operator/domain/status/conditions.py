"""Conditions that are true for kubectl wait, for kstatus (Flux, Helm) and for Argo CD.

Ready, Reconciling and Stalled are kstatus' words: the latter two stand only while they hold. With readyWhen Accepted, Ready
is True from the accepted plan on, through queues and retries; with Completed it comes with Complete. A suspended job that
has no plan yet has none of the three: waiting for it would be waiting for ever.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from finetune_api.checks import CHECKS
from finetune_api.status import Condition, DataStatus

from finetune_operator.domain.admission import plan_admission
from finetune_operator.domain.attempts.history import latest
from finetune_operator.domain.diagnosis.pending_pods import COUNTED, same_problem
from finetune_operator.domain.plan_builder import JobState, PlanBuilder
from finetune_operator.domain.reasons import Reason
from finetune_operator.domain.times import stamp

Truth = Literal["True", "False", "Unknown"]
Shown = tuple[Truth, str, str]
"""Status, reason, message."""

_LONGEST = 4096
OURS = frozenset(
    [
        "Ready",
        "Reconciling",
        "Stalled",
        "DataValid",
        "PlanAccepted",
        "QuotaReserved",
        "Running",
        "Evaluated",
        "Published",
        "Complete",
        "Failed",
        "Suspended",
        "ProgressUnknown",
    ]
)


def show(builder: PlanBuilder) -> None:
    """Phase, reason, message and every condition, from where the job stands."""
    job_state, status = builder.job_state, builder.status
    assert job_state is not None, "a plan must settle where the job stands"
    generation = builder.metadata.generation
    status.observed_generation = generation
    status.phase = job_state.phase
    known = builder.before.message or ""
    counted = job_state.reason in COUNTED and builder.before.reason == job_state.reason
    if counted and same_problem(known, job_state.message):
        # A scheduler counts its nodes again each time: neither a write nor an event is worth that.
        job_state = replace(job_state, message=known)
    status.reason, status.message = str(job_state.reason), job_state.message[:_LONGEST]
    shown = _conditions(builder, job_state)
    before = {condition.type: condition for condition in status.conditions or []}
    status.conditions = [
        _condition(kind, word, before.get(kind), generation, builder.now) for kind, word in shown.items()
    ]
    # A merge patch replaces the whole list: what other controllers added stays.
    status.conditions += [condition for kind, condition in before.items() if kind not in OURS]
    _report_problem(builder, job_state)


def _conditions(builder: PlanBuilder, job_state: JobState) -> dict[str, Shown]:
    reason, message = str(job_state.reason), job_state.message
    complete, failed = job_state.phase == "Completed", job_state.phase == "Failed"
    shown: dict[str, Shown] = {}
    accepted = _data_and_plan(builder, shown)
    if complete:
        shown["Ready"] = ("True", reason, message)
    elif failed or _stalled(job_state):
        shown["Ready"] = ("False", reason, message)
        shown["Stalled"] = ("True", reason, message)
    elif accepted and builder.wanted.ready_when == "Accepted":
        shown["Ready"] = ("True", "PlanAccepted", "The data is good and the plan is accepted")
    elif not (job_state.suspended and builder.wanted.ready_when == "Accepted"):
        shown["Ready"] = ("False", reason, message)
        shown["Reconciling"] = ("True", reason, message)
    _queue_and_evaluation(builder, job_state, shown)
    shown["Running"] = ("True" if job_state.running else "False", reason, message)
    if job_state.suspended:
        shown["Suspended"] = ("True", reason, message)
    elif any(c.type == "Suspended" for c in builder.before.conditions or []) and not (complete or failed):
        shown["Suspended"] = ("False", reason, message)
    if complete:
        shown["Complete"] = ("True", reason, message)
    if failed:
        shown["Failed"] = ("True", reason, message)
    _progress(builder, shown)
    return {kind: _without_repeat(kind, condition, message) for kind, condition in shown.items()}


_REPEATS = ("Ready", "Running", "QuotaReserved", "Suspended")


def _without_repeat(kind: str, shown: Shown, message: str) -> Shown:
    """Keep the job's message in status.message, in the condition that kstatus reads, and in Complete and Failed."""
    status, reason, own = shown
    repeats = own == message and kind in _REPEATS and (kind, status) != ("Ready", "True")
    return (status, reason, "") if repeats else shown


def _queue_and_evaluation(builder: PlanBuilder, job_state: JobState, shown: dict[str, Shown]) -> None:
    """QuotaReserved, from the first training Job on, and Evaluated, from the end of the training on."""
    trained = latest(builder.attempts, "train")
    if trained is None:
        return
    job = builder.observed.jobs.get(trained.job)
    if trained.outcome == "Succeeded":
        rows = builder.status.evaluation.rows if builder.status.evaluation is not None else None
        if rows is not None:
            shown["Evaluated"] = ("True", "Evaluated", f"{rows} rows of the test split were measured")
    elif trained.outcome == "Running" and job is not None and job.suspended:
        shown["QuotaReserved"] = ("False", job_state.reason, job_state.message)
    elif trained.outcome == "Running" and job is not None and (job_state.running or _known(builder, "QuotaReserved")):
        # Not before its pods run, where no queue held it: that would be a write for nothing.
        shown["QuotaReserved"] = ("True", "Reserved", "The training Job may create its pods")


def _known(builder: PlanBuilder, kind: str) -> bool:
    return any(condition.type == kind for condition in builder.before.conditions or [])


_CAPACITY = (Reason.UNSCHEDULABLE, Reason.QUOTA_EXCEEDED)
"""Waiting for room is what jobs do: nothing has to be fixed."""


def _stalled(job_state: JobState) -> bool:
    return job_state.problem and job_state.reason not in _CAPACITY


def _data_and_plan(builder: PlanBuilder, shown: dict[str, Shown]) -> bool:
    """DataValid, PlanAccepted and Published, from the stages that are done. Returns whether the plan is accepted."""
    status = builder.status
    prepared, published = latest(builder.attempts, "prepare"), latest(builder.attempts, "publish")
    if prepared is not None and prepared.outcome == "Succeeded":
        shown["DataValid"] = ("True", "Checked", _checked(status.data))
        shown["PlanAccepted"] = _accepted(builder)
    elif status.failure is not None and status.failure.code in _DATA_CODES:
        shown["DataValid"] = ("False", status.failure.code, status.failure.message)
    if published is not None and published.outcome == "Succeeded":
        where = status.artifacts.uri if status.artifacts is not None else builder.wanted.output.uri
        shown["Published"] = ("True", "Published", f"The result is at {where}")
    return "PlanAccepted" in shown and shown["PlanAccepted"][0] == "True"


_DATA_CODES = {"InvalidData", "InvalidTemplate", *CHECKS}


def _checked(data: DataStatus | None) -> str:
    if data is None or data.rows is None:
        return "The data was read"
    found = [f"{finding.code} ({finding.count})" for finding in data.findings or [] if finding.severity != "Info"]
    return f"{data.rows} rows were read" + (f"; to check: {', '.join(found)}" if found else "")


def _accepted(builder: PlanBuilder) -> Shown:
    """Whether the plan may be trained. Before it is, nothing is asked of a GPU."""
    status = builder.status
    if (objection := plan_admission.objection(builder)) is not None:
        return "False", *objection
    how = "Approved" if builder.wanted.budget.approval == "Manual" else "Automatic"
    return "True", how, plan_admission.headline(status.plan) if status.plan is not None else "The plan is accepted"


def _progress(builder: PlanBuilder, shown: dict[str, Shown]) -> None:
    """ProgressUnknown stands while the endpoint cannot be read, and until it was read again: a new operator knows nothing yet."""
    reading = builder.observed.progress
    if builder.poll is None:
        return
    if reading is not None and reading.pod_uid == builder.poll.uid:
        if reading.problem is not None:
            shown["ProgressUnknown"] = ("True", Reason.POLL_FAILED, reading.problem)
        return
    before = next((c for c in builder.before.conditions or [] if c.type == "ProgressUnknown"), None)
    if before is not None:
        shown["ProgressUnknown"] = (before.status, before.reason, before.message)


def _condition(kind: str, shown: Shown, before: Condition | None, generation: int, now: float) -> Condition:
    status, reason, message = shown
    since = stamp(now)
    if before is not None and before.status == status:
        since = before.last_transition_time
    return Condition(
        type=kind,
        status=status,
        reason=reason,
        message=message[:_LONGEST],
        observed_generation=generation,
        last_transition_time=since,
    )


def _report_problem(builder: PlanBuilder, job_state: JobState) -> None:
    """Emit one Warning when a problem appears; its end shows in what happens next."""
    if job_state.problem and (builder.before.reason, builder.before.message) != (
        job_state.reason,
        builder.status.message,
    ):
        builder.emit_event("Warning", job_state.reason, "Wait", job_state.message)
    if job_state.suspended and not job_state.problem and builder.before.phase not in ("Suspended", None):
        builder.emit_event("Normal", Reason.SUSPENDED, "Suspend", job_state.message)
    if (
        builder.before.phase == "Suspended"
        and not job_state.suspended
        and job_state.phase not in ("Completed", "Failed")
    ):
        builder.emit_event("Normal", Reason.RESUMED, "Resume", "The job resumes")
