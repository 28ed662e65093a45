"""One look at one job: what should exist, what the status should show, what to tell, and when to look again.

`plan` reads and writes nothing and has no clock. Policies are asked in order; each may settle where the job stands
(`draft.situation`), and then only the closing ones follow. What is terminal stays terminal; a stage recorded as done is
never run again; the verdict on an attempt is in the status before the next attempt exists.
"""

from __future__ import annotations

from collections.abc import Callable

from finetune_operator.domain import accept, conditions, finish, follow, preflight, progress
from finetune_operator.domain.draft import Config, Draft, Plan
from finetune_operator.domain.observed import Seen

MANAGED_HERE = "finetune.dev/operator"

POLICIES: tuple[Callable[[Draft], None], ...] = (
    finish.start_again,  # a finished job with a new runToken begins a fresh run
    finish.go_on_from_the_plan,
    finish.stay_finished,  # terminal is terminal
    accept.refuse_unreadable,  # what the schema could not know
    accept.accept,  # name the run, freeze the platform's defaults, decide absent fields
    accept.refuse_impossible,  # combinations of fields that cannot work
    accept.refuse_without_image,
    preflight.check_workspace,  # several nodes need a claim that several nodes can mount
    follow.follow,  # the stages: watch the attempt under way, judge it, begin the next
)
CLOSING: tuple[Callable[[Draft], None], ...] = (
    progress.show,
    finish.clean_up,
    conditions.show,
)


def plan(seen: Seen, now: float, config: Config) -> Plan:
    """`now` in seconds since 1970."""
    job = seen.job
    if job.metadata.deletion_timestamp is not None or job.spec.managed_by != MANAGED_HERE:
        return Plan()
    draft = Draft.open(seen, now, config)
    for policy in POLICIES:
        policy(draft)
        if draft.situation is not None:
            break
    for policy in CLOSING:
        policy(draft)
    return draft.close()
