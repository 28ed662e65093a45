"""What follows from where an attempt stands and what is wanted of it: one table."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from finetune_operator.domain.attempts.standing import Standing


class Wish(StrEnum):
    """What user, plan and budget want of the attempt. The first that applies counts."""

    SUSPEND = "Suspend"
    """spec.suspend."""
    WITHDRAW = "Withdraw"
    """The plan may not be trained: over budget, not approved, or `mode: Plan`."""
    SPEND_NOTHING = "SpendNothing"
    """The budget is used up."""
    BLOCK = "Block"
    """Nothing may be created now: the spec cannot be read, no image is set, the workspace cannot be mounted."""
    REPLACE = "Replace"
    """The settings of pods that never ran have changed."""
    RUN = "Run"


class Step(StrEnum):
    CREATE = "Create"
    RELEASE = "Release"
    START = "Start"
    """Complete what is missing and diagnose why pods wait."""
    WATCH = "Watch"
    HOLD = "Hold"
    """Suspend the Job: its pods save a checkpoint and stop. A Job that a queue manages is given back."""
    GIVE_BACK = "GiveBack"
    """Delete a Job that waits in a queue, or leave one that a person suspended."""
    WITHDRAW = "Withdraw"
    REPLACE = "Replace"
    AWAIT_QUEUE = "AwaitQueue"
    AWAIT_STOP = "AwaitStop"
    TAKE_BACK = "TakeBack"
    """Release a Job that this operator suspended, also while its pods still stop."""
    AWAIT_END = "AwaitEnd"
    SHOW_SUSPENDED = "ShowSuspended"
    SHOW_SPENT = "ShowSpent"
    SHOW_BLOCKED = "ShowBlocked"
    END_VANISHED = "EndVanished"
    END_STOPPED = "EndStopped"
    END_LOST = "EndLost"
    END_FAILED = "EndFailed"
    END_COMPLETE = "EndComplete"


def _row(
    run: Step, *, suspend: Step, withdraw: Step, spend_nothing: Step, block: Step, replace: Step
) -> Mapping[Wish, Step]:
    return {
        Wish.SUSPEND: suspend,
        Wish.WITHDRAW: withdraw,
        Wish.SPEND_NOTHING: spend_nothing,
        Wish.BLOCK: block,
        Wish.REPLACE: replace,
        Wish.RUN: run,
    }


def _always(step: Step) -> Mapping[Wish, Step]:
    """What ended is recorded, and what stops is waited for, whatever is wanted."""
    return dict.fromkeys(Wish, step)


_TABLE: Mapping[Standing, Mapping[Wish, Step]] = {
    Standing.NOT_CREATED: _row(
        Step.CREATE,
        suspend=Step.SHOW_SUSPENDED,
        withdraw=Step.WITHDRAW,
        spend_nothing=Step.SHOW_SPENT,
        block=Step.SHOW_BLOCKED,
        replace=Step.CREATE,
    ),
    Standing.QUEUED: _row(
        Step.AWAIT_QUEUE,
        suspend=Step.GIVE_BACK,
        withdraw=Step.WITHDRAW,
        spend_nothing=Step.GIVE_BACK,
        block=Step.SHOW_BLOCKED,
        replace=Step.REPLACE,
    ),
    Standing.HELD: _row(
        Step.RELEASE,
        suspend=Step.SHOW_SUSPENDED,
        withdraw=Step.WITHDRAW,
        spend_nothing=Step.SHOW_SPENT,
        block=Step.SHOW_BLOCKED,
        replace=Step.REPLACE,
    ),
    Standing.STARTING: _row(
        Step.START,
        suspend=Step.HOLD,
        withdraw=Step.WITHDRAW,
        spend_nothing=Step.HOLD,
        block=Step.START,
        replace=Step.REPLACE,
    ),
    Standing.RUNNING: _row(
        Step.WATCH,
        suspend=Step.HOLD,
        withdraw=Step.WATCH,
        spend_nothing=Step.HOLD,
        block=Step.WATCH,
        replace=Step.WATCH,
    ),
    Standing.STOPPING: _row(
        Step.TAKE_BACK,
        suspend=Step.AWAIT_STOP,
        withdraw=Step.AWAIT_STOP,
        spend_nothing=Step.AWAIT_STOP,
        block=Step.AWAIT_STOP,
        replace=Step.AWAIT_STOP,
    ),
    Standing.FAILING: _always(Step.AWAIT_END),
    Standing.VANISHED: _always(Step.END_VANISHED),
    Standing.STOPPED: _always(Step.END_STOPPED),
    Standing.NODE_LOST: _always(Step.END_LOST),
    Standing.FAILED: _always(Step.END_FAILED),
    Standing.COMPLETE: _always(Step.END_COMPLETE),
}


def decide(standing: Standing, wish: Wish) -> Step:
    """The one next step."""
    return _TABLE[standing][wish]
