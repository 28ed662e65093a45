"""Plan one reconcile of one job: what should exist, what the status should show, what to report, and when to come back.

`plan` reads and writes nothing and has no clock. Policies are asked in order; each may settle the job's state
(`builder.job_state`), and then only the closing ones follow. What is terminal stays terminal; a stage recorded as done is
never run again; how an attempt ended is in the status before the next attempt exists.
"""

from __future__ import annotations

from collections.abc import Callable

from finetune_operator.domain.admission import acceptance
from finetune_operator.domain.admission.workspace import unshared_claim
from finetune_operator.domain.attempts import completion, usage
from finetune_operator.domain.attempts.reconcile import reconcile_attempts
from finetune_operator.domain.attempts.start import report_refused_deletion
from finetune_operator.domain.observed import ObservedState
from finetune_operator.domain.plan_builder import Config, Delete, JobState, Plan, PlanBuilder
from finetune_operator.domain.reasons import Reason
from finetune_operator.domain.status import conditions, progress

MANAGED_HERE = "finetune.dev/operator"

BLOCKERS: tuple[Callable[[PlanBuilder], JobState | None], ...] = (
    acceptance.unreadable,
    acceptance.impossible,  # combinations of fields that cannot work
    acceptance.without_image,
    unshared_claim,  # several nodes need claims that several nodes can mount
)


def find_blocker(builder: PlanBuilder) -> None:
    """What keeps attempts from starting. What runs is not touched by it."""
    for blocker in BLOCKERS:
        builder.blocked = blocker(builder)
        if builder.blocked is not None:
            return


POLICIES: tuple[Callable[[PlanBuilder], None], ...] = (
    completion.start_again,  # a finished job with a new runToken begins another run
    completion.resume_from_plan,
    completion.stay_finished,  # terminal is terminal
    acceptance.accept,
    find_blocker,
    reconcile_attempts,
)
CLOSING: tuple[Callable[[PlanBuilder], None], ...] = (
    progress.show,
    completion.clean_up,
    report_refused_deletion,
    conditions.show,
    usage.count,
)


def plan(observed: ObservedState, now: float, config: Config) -> Plan:
    """`now` in seconds since 1970."""
    job = observed.job
    if job.spec.managed_by != MANAGED_HERE:
        return Plan()
    if job.metadata.deletion_timestamp is not None:
        # Its children go with it, but not before somebody else's finalizer: GPUs are given back now.
        jobs = (child for child in observed.jobs.values() if not child.deleting)
        return Plan(delete=tuple(Delete(child.name, child.uid) for child in jobs))
    builder = PlanBuilder.open(observed, now, config)
    if observed.unreadable:
        fields = ", ".join(f"status.{name}" for name in sorted(observed.unreadable))
        message = f"{fields}: written by another version and not readable by this one. Upgrade the operator"
        builder.job_state = JobState(builder.before.phase or "Pending", Reason.UNREADABLE_STATUS, message, problem=True)
        conditions.show(builder)
        return builder.close()
    for policy in POLICIES:
        policy(builder)
        if builder.job_state is not None:
            break
    for policy in CLOSING:
        policy(builder)
    return builder.close()
