"""What a FineTuneJob's status means to a person: pure functions from a status to sentences and an end.

Cluster and local runs share this: both give a `FineTuneJobStatus`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from finetune_api.checks import CHECKS, Severity
from finetune_api.finetunejob import FineTuneJob
from finetune_api.status import AttemptStatus, FindingStatus, FineTuneJobStatus, PlanStatus

from finetune_cli.errors import Exit
from finetune_cli.text import bytes_size, count, duration, figure, money, number

ORDINARY = {
    "Starting",
    "Preparing",
    "Training",
    "Publishing",
    "Resuming",
    "Retrying",
    "Suspending",
    "Suspended",
    "Completed",
    "Planned",
}
"""Reasons of a job that is on its way; with any other one somebody has to act."""


BUDGET_EXHAUSTED, PLANNED = "BudgetExhausted", "Planned"
TRAIN_AFTER_PLAN = "Set spec.mode: Run to train it."


@dataclass(frozen=True)
class End:
    """How a job ended."""

    succeeded: bool
    sentence: str
    exit_code: Exit


def parse(body: dict[str, Any]) -> FineTuneJob:
    """A FineTuneJob as the API server gives it; unknown fields of a newer operator are ignored."""
    return FineTuneJob.model_validate(body, extra="ignore")


def observed(job: FineTuneJob) -> bool:
    """Whether the operator has reconciled this generation of the spec."""
    return job.status.observed_generation == job.metadata.generation


def end(job: FineTuneJob) -> End | None:
    """None while the job runs or waits."""
    status = job.status
    if not observed(job):
        return None
    if _true(status, "Complete") or status.phase == "Completed":
        if planned(job):
            return End(True, f"{job.metadata.name} is planned; nothing was trained. {TRAIN_AFTER_PLAN}", Exit.DONE)
        return End(True, f"{job.metadata.name} completed{_took(status)}.", Exit.DONE)
    if status.phase == "Suspended" and status.reason == BUDGET_EXHAUSTED:
        why = status.message or "the budget is used up; raise spec.budget to resume"
        kept = " with a checkpoint" if status.last_checkpoint else ""
        return End(False, f"{job.metadata.name} stopped{kept}: {_sentence(why)}", Exit.BUDGET)
    if _true(status, "Failed") or status.phase == "Failed":
        return End(False, failure_sentence(job), Exit.FAILED)
    return None


def planned(job: FineTuneJob) -> bool:
    """Whether the plan was all that was asked for, and is there."""
    return job.status.phase == "Completed" and job.status.reason == PLANNED


def awaits(job: FineTuneJob) -> str | None:
    """Digest of the plan that has to be approved before the job continues."""
    status = job.status
    if not observed(job) or status.phase != "AwaitingApproval" or status.plan is None:
        return None
    return status.plan.digest


def failure_sentence(job: FineTuneJob) -> str:
    """What went wrong, where, and what to do: one line."""
    failure = job.status.failure
    if failure is None:
        return f"{job.metadata.name} Failed: {job.status.message or job.status.reason or 'the operator gave no reason'}"
    place = f" in {failure.stage}" if failure.stage else ""
    if failure.rank is not None and failure.stage == "train":
        place += f", rank {failure.rank}"
    if failure.node:
        place += f" on {failure.node}"
    sentence = f"{job.metadata.name} Failed{place}: {_sentence(failure.message)}"
    return f"{sentence} {_sentence(failure.remedy[:1].upper() + failure.remedy[1:])}" if failure.remedy else sentence


def headline(job: FineTuneJob) -> str:
    """What this job is, in one line."""
    spec = job.spec
    gang = count(spec.compute.nodes, "pod")
    if spec.compute.gpus_per_node:
        gang += f" with {count(spec.compute.gpus_per_node, 'GPU')} each"
    where = f"{job.metadata.namespace}/" if job.metadata.namespace else ""
    return f"{where}{job.metadata.name}: {spec.method.type} on {spec.model.uri}, {gang}"


def lasts_seconds(job: FineTuneJob, now: float) -> float:
    """Seconds since the job was accepted, or created."""
    begun = job.status.start_time or job.metadata.creation_timestamp
    return max(0.0, now - _unix(begun)) if begun else 0.0


def waiting(job: FineTuneJob) -> str | None:
    """The operator's message, unless the job has ended."""
    status = job.status
    if not observed(job) or status.message is None or end(job) is not None:
        return None
    return _sentence(status.message)


def needs_attention(job: FineTuneJob) -> bool:
    """Whether somebody has to act before the job can continue."""
    return waiting(job) is not None and job.status.reason not in ORDINARY


def last_told(before: FineTuneJob | None, now: FineTuneJob) -> FineTuneJob:
    """What the next news are compared with: until the operator has reconciled an edited spec, nothing new is known."""
    return now if before is None or observed(now) else before


def _known(before: FineTuneJob | None, now: FineTuneJob) -> FineTuneJobStatus:
    """What was reported already: nothing of another run."""
    if before is None or not observed(before) or before.status.run not in (None, now.status.run):
        return FineTuneJobStatus()
    return before.status


def news(before: FineTuneJob | None, now: FineTuneJob) -> list[str]:
    """Sentences about what has changed since `before`: each is reported once."""
    if not observed(now):
        return []
    old, new, said = _known(before, now), now.status, []
    if new.data and new.data.rows is not None and (old.data is None or old.data.rows is None):
        said.append(data_sentence(now))
    if new.plan and new.plan.steps is not None and (old.plan is None or old.plan.steps is None):
        said += [sentence for sentence in (plan_sentence(now), estimate_sentence(new.plan)) if sentence]
    said += _attempts(old, new)
    if (new.phase, new.reason, new.message) != (old.phase, old.reason, old.message) and end(now) is None:
        if new.message and new.message != old.message:
            said.append(_sentence(new.message))
    return said


def findings(before: FineTuneJob | None, now: FineTuneJob) -> list[tuple[Severity, str]]:
    """What the checks of the data found, reported once: severity and line."""
    old, new = (status.data.findings if status.data else None for status in (_known(before, now), now.status))
    return [] if old or not new or not observed(now) else [(one.severity, _finding(one)) for one in new]


def _finding(one: FindingStatus) -> str:
    check = CHECKS.get(one.code)  # type: ignore[call-overload]  # a newer operator may know more
    line = f"{one.severity}: {one.code}, {number(one.count)}"
    return line + (f" ({check.finds})" if check else "") + (f", first at {one.where}" if one.where else "") + "."


def data_sentence(job: FineTuneJob) -> str:
    """What prepare found."""
    data = job.status.data
    if data is None or data.rows is None:
        return ""
    parts = [
        f"{number(rows)} {name}"
        for rows, name in ((data.train_rows, "train"), (data.validation_rows, "validation"), (data.test_rows, "test"))
        if rows
    ]
    sentence = f"{count(data.rows, 'row')}" + (f": {', '.join(parts)}" if parts else "")
    for rows, what in (
        (data.invalid_rows, "invalid, left out"),
        (data.truncated_rows, "truncated"),
        (data.dropped_rows, "dropped"),
    ):
        if rows:
            sentence += f"; {number(rows)} {what}"
    return sentence + "."


def plan_sentence(job: FineTuneJob) -> str:
    """What training will do."""
    plan = job.status.plan
    if plan is None or plan.steps is None:
        return ""
    return f"{count(plan.steps, 'step')}{course(plan)}."


def course(plan: PlanStatus) -> str:
    """What its steps are of, behind their number."""
    text = f" of {count(plan.global_batch_size, 'row')}" if plan.global_batch_size else ""
    if plan.epochs:
        text += f", {plan.epochs:g} epoch" + ("" if plan.epochs == 1 else "s")
    return text + (f", {count(plan.tokens, 'token')}" if plan.tokens else "")


def estimate_sentence(plan: PlanStatus) -> str:
    """What training will take."""
    parts = []
    if plan.duration:
        parts.append(f"about {plan.duration}")
    if plan.gpu_hours:
        parts.append(f"{figure(plan.gpu_hours)} GPU hours")
    if plan.cost:
        parts.append(f"cost {money(plan.cost)}")
    if plan.memory_per_gpu:
        parts.append(f"at most {plan.memory_per_gpu} of memory {on_each(plan)}")
    if not parts:
        return ""
    sentence = ", ".join(parts)
    return f"{sentence[:1].upper()}{sentence[1:]}."


def on_each(plan: PlanStatus) -> str:
    """What memory is counted for: a plan that takes no GPU hours is one for CPUs."""
    return "in each process" if plan.gpu_hours == 0 else "on each GPU"


def artifacts_sentence(job: FineTuneJob) -> str:
    artifacts = job.status.artifacts
    if artifacts is None:
        return ""
    size = []
    if artifacts.files:
        size.append(count(artifacts.files, "file"))
    if artifacts.bytes:
        size.append(bytes_size(artifacts.bytes))
    return artifacts.uri + (f" ({', '.join(size)})" if size else "")


def _attempts(old: FineTuneJobStatus, new: FineTuneJobStatus) -> list[str]:
    known = {(attempt.stage, attempt.number): attempt for attempt in old.attempts or []}
    said = []
    for attempt in new.attempts or []:
        before = known.get((attempt.stage, attempt.number))
        if attempt.outcome in ("Stopped", "Failed", "Evicted") and (
            before is None or before.outcome != attempt.outcome
        ):
            said.append(_stopped(attempt))
        if before is None and attempt.outcome == "Running" and (attempt.number > 1 or attempt.resumed_from_step):
            said.append(_started(attempt))
        elif before is not None and before.resumed_from_step != attempt.resumed_from_step and attempt.resumed_from_step:
            said.append(
                f"{attempt.stage} attempt {attempt.number} resumes from step {number(attempt.resumed_from_step)}."
            )
    return said


def _stopped(attempt: AttemptStatus) -> str:
    at = f" at step {number(attempt.last_step)}" if attempt.last_step else ""
    why = attempt.message or attempt.reason
    return f"{attempt.stage} attempt {attempt.number} {attempt.outcome}{at}" + (f": {_sentence(why)}" if why else ".")


def _started(attempt: AttemptStatus) -> str:
    start = f"resumes from step {number(attempt.resumed_from_step)}" if attempt.resumed_from_step else "starts"
    return f"{attempt.stage} attempt {attempt.number} {start}."


def _true(status: FineTuneJobStatus, condition: str) -> bool:
    return any(item.type == condition and item.status == "True" for item in status.conditions or [])


def _took(status: FineTuneJobStatus) -> str:
    if not status.start_time or not status.completion_time:
        return ""
    return f" in {duration(_unix(status.completion_time) - _unix(status.start_time))}"


def _unix(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()


def _sentence(text: str) -> str:
    """Ends with a full stop, whoever wrote it."""
    text = " ".join(text.split())
    return text if text.endswith((".", "!", "?")) else text + "."
