"""One look at one job: what should exist, what the status should show, what to tell, and when to look again.

`plan` reads and writes nothing and has no clock. Policies are asked in order; each may settle where the job stands
(`draft.situation`), and then only the closing ones follow. What is terminal stays terminal; a stage recorded as done is
never run again; the verdict on an attempt is in the status before the next attempt exists.
"""

from __future__ import annotations

from collections.abc import Callable

from finetune_operator.domain.admission import acceptance, workspace
from finetune_operator.domain.attempts import completion, reconcile
from finetune_operator.domain.observed import ObservedState
from finetune_operator.domain.plan_builder import Config, Plan, PlanBuilder
from finetune_operator.domain.status import conditions, progress

MANAGED_HERE = "finetune.dev/operator"

POLICIES: tuple[Callable[[PlanBuilder], None], ...] = (
    completion.start_again,  # a finished job with a new runToken begins a fresh run
    completion.go_on_from_the_plan,
    completion.stay_finished,  # terminal is terminal
    acceptance.refuse_unreadable,  # what the schema could not know
    acceptance.accept,  # name the run, freeze the platform's defaults, decide absent fields
    acceptance.refuse_impossible,  # combinations of fields that cannot work
    acceptance.refuse_without_image,
    workspace.check_workspace,  # several nodes need a claim that several nodes can mount
    reconcile.follow,  # the stages: watch the attempt under way, judge it, begin the next
)
CLOSING: tuple[Callable[[PlanBuilder], None], ...] = (
    progress.show,
    completion.clean_up,
    conditions.show,
)


def plan(seen: ObservedState, now: float, config: Config) -> Plan:
    """`now` in seconds since 1970."""
    job = seen.job
    if job.metadata.deletion_timestamp is not None or job.spec.managed_by != MANAGED_HERE:
        return Plan()
    draft = PlanBuilder.open(seen, now, config)
    for policy in POLICIES:
        policy(draft)
        if draft.situation is not None:
            break
    for policy in CLOSING:
        policy(draft)
    return draft.close()
