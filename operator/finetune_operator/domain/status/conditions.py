"""Conditions that are true for kubectl wait, for kstatus (Flux, Helm) and for Argo CD.

Ready, Reconciling and Stalled are kstatus' words: the latter two stand only while they hold. With readyWhen Accepted, Ready
is True from the accepted plan on, through queues and retries; with Completed it comes with Complete. A suspended job that
has no plan yet has none of the three: waiting for it would be waiting for ever.
"""

from __future__ import annotations

from typing import Literal

from finetune_api.checks import CHECKS
from finetune_api.status import Condition, DataStatus

from finetune_operator.domain.admission import plan_admission
from finetune_operator.domain.attempts import usage
from finetune_operator.domain.attempts.history import latest
from finetune_operator.domain.plan_builder import JobState, PlanBuilder
from finetune_operator.domain.reasons import Reason
from finetune_operator.domain.times import stamp

Truth = Literal["True", "False", "Unknown"]
Said = tuple[Truth, str, str]
"""Status, reason, message."""

_LONGEST = 4096


def show(draft: PlanBuilder) -> None:
    """Phase, reason, message and every condition, from where the job stands."""
    situation, status = draft.situation, draft.status
    assert situation is not None, "a plan must settle where the job stands"
    generation = draft.metadata.generation
    status.observed_generation = generation
    status.phase = situation.phase
    status.reason, status.message = str(situation.reason), situation.message[:_LONGEST]
    said = _said(draft, situation)
    before = {condition.type: condition for condition in status.conditions or []}
    status.conditions = [_condition(kind, word, before.get(kind), generation, draft.now) for kind, word in said.items()]
    _tell_problem(draft, situation)
    usage.count(draft)


def _said(draft: PlanBuilder, situation: JobState) -> dict[str, Said]:
    reason, message = str(situation.reason), situation.message
    complete, failed = situation.phase == "Completed", situation.phase == "Failed"
    said: dict[str, Said] = {}
    accepted = _data_and_plan(draft, said)
    if complete:
        said["Ready"] = ("True", reason, message)
    elif failed or situation.reason == Reason.BUDGET_EXHAUSTED:  # somebody must do something
        said["Ready"] = ("False", reason, message)
        said["Stalled"] = ("True", reason, message)
    elif accepted and draft.wanted.ready_when == "Accepted":
        said["Ready"] = ("True", "PlanAccepted", "The data is good and the plan is accepted")
    elif not (situation.suspended and draft.wanted.ready_when == "Accepted"):
        said["Ready"] = ("False", reason, message)
        said["Reconciling"] = ("True", reason, message)
    said["Running"] = ("True" if situation.running else "False", reason, message)
    if situation.suspended:
        said["Suspended"] = ("True", reason, message)
    elif any(c.type == "Suspended" for c in draft.before.conditions or []) and not (complete or failed):
        said["Suspended"] = ("False", reason, message)
    if complete:
        said["Complete"] = ("True", reason, message)
    if failed:
        said["Failed"] = ("True", reason, message)
    _progress(draft, said)
    return said


def _data_and_plan(draft: PlanBuilder, said: dict[str, Said]) -> bool:
    """DataValid, PlanAccepted and Published, from the stages that are done. Returns whether the plan is accepted."""
    status = draft.status
    prepared, published = latest(draft.attempts, "prepare"), latest(draft.attempts, "publish")
    if prepared is not None and prepared.outcome == "Succeeded":
        said["DataValid"] = ("True", "Checked", _checked(status.data))
        said["PlanAccepted"] = _accepted(draft)
    elif status.failure is not None and status.failure.code in _DATA_CODES:
        said["DataValid"] = ("False", status.failure.code, status.failure.message)
    if published is not None and published.outcome == "Succeeded":
        where = status.artifacts.uri if status.artifacts is not None else draft.wanted.output.uri
        said["Published"] = ("True", "Published", f"The result is at {where}")
    return "PlanAccepted" in said and said["PlanAccepted"][0] == "True"


_DATA_CODES = {"InvalidData", "InvalidTemplate", *CHECKS}


def _checked(data: DataStatus | None) -> str:
    if data is None or data.rows is None:
        return "The data was read"
    found = [f"{finding.code} ({finding.count})" for finding in data.findings or [] if finding.severity != "Info"]
    return f"{data.rows} rows were read" + (f"; to look at: {', '.join(found)}" if found else "")


def _accepted(draft: PlanBuilder) -> Said:
    """Whether the plan may be trained. Before it is, nothing is asked of a GPU."""
    status = draft.status
    if (objection := plan_admission.objection(draft)) is not None:
        return "False", *objection
    how = "Approved" if draft.wanted.budget.approval == "Manual" else "Automatic"
    return "True", how, plan_admission.headline(status.plan) if status.plan is not None else "The plan is accepted"


def _progress(draft: PlanBuilder, said: dict[str, Said]) -> None:
    """ProgressUnknown stands while the endpoint cannot be read, and until it was read again: a new operator knows nothing yet."""
    reading = draft.seen.progress
    if draft.poll is None:
        return
    if reading is not None and reading.pod_uid == draft.poll.uid:
        if reading.problem is not None:
            said["ProgressUnknown"] = ("True", Reason.POLL_FAILED, reading.problem)
        return
    before = next((c for c in draft.before.conditions or [] if c.type == "ProgressUnknown"), None)
    if before is not None:
        said["ProgressUnknown"] = (before.status, before.reason, before.message)


def _condition(kind: str, said: Said, before: Condition | None, generation: int, now: float) -> Condition:
    status, reason, message = said
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


def _tell_problem(draft: PlanBuilder, situation: JobState) -> None:
    """One Warning when a problem appears; its end is told by what happens next."""
    if situation.problem and (draft.before.reason, draft.before.message) != (situation.reason, draft.status.message):
        draft.emit_event("Warning", Reason(situation.reason), "Wait", situation.message)
    if situation.suspended and not situation.problem and draft.before.phase not in ("Suspended", None):
        draft.emit_event("Normal", Reason.SUSPENDED, "Suspend", situation.message)
    if draft.before.phase == "Suspended" and not situation.suspended and situation.phase not in ("Completed", "Failed"):
        draft.emit_event("Normal", Reason.RESUMED, "Resume", "The job goes on")
