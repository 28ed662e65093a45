"""The book of attempts in status: which stage is next, which attempt was the last, when the next may begin."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence

from finetune_api.status import STAGES, AttemptStatus, Stage

from finetune_operator.domain.reasons import Code, Reason
from finetune_operator.domain.times import seconds_of

KEPT = 10
EVICTION_DELAY_S = 5.0
LONGEST_DELAY_S = 300.0
_GOT_SOMEWHERE_S = 600.0
_NODE_FAILURES = 2
_NOT_THE_NODE = (Code.OUT_OF_MEMORY, Code.PEER_LOST)


def stage_to_do(attempts: Sequence[AttemptStatus]) -> Stage | None:
    """The first stage that never succeeded; None when all did. A stage recorded as done is never run again."""
    done = {attempt.stage for attempt in attempts if attempt.outcome == "Succeeded"}
    return next((stage for stage in STAGES if stage not in done), None)


def latest(attempts: Sequence[AttemptStatus], stage: Stage) -> AttemptStatus | None:
    """The newest attempt at a stage."""
    return max((a for a in attempts if a.stage == stage), key=lambda a: a.number, default=None)


def running(attempts: Sequence[AttemptStatus]) -> AttemptStatus | None:
    """The attempt that is under way."""
    return next((attempt for attempt in attempts if attempt.outcome == "Running"), None)


def trimmed(attempts: Sequence[AttemptStatus]) -> list[AttemptStatus]:
    """At most KEPT, the newest ones, and always the successes: they say what is never run again."""
    surplus = len(attempts) - KEPT
    kept = []
    for attempt in attempts:
        if surplus > 0 and attempt.outcome not in ("Succeeded", "Running"):
            surplus -= 1
        else:
            kept.append(attempt)
    return kept


def nodes_to_avoid(attempts: Sequence[AttemptStatus]) -> list[str]:
    """Nodes on which two attempts failed: a broken GPU or disk fails again."""
    failures = Counter(a.node for a in attempts if a.outcome == "Failed" and a.reason not in _NOT_THE_NODE and a.node)
    return sorted(node for node, count in failures.items() if count >= _NODE_FAILURES)


def delay(attempts: Sequence[AttemptStatus], last: AttemptStatus, infra_failures: int, retry_delay: float) -> float:
    """Seconds between the end of `last` and the next attempt at its stage. Spread by a fifth either way, the same for the same
    attempt, so that jobs that failed together do not start together."""
    pause = EVICTION_DELAY_S * 2.0 ** max(0, _in_a_row(attempts) - 1)
    match last.outcome, last.reason:
        case "Failed", _:
            pause = retry_delay * 2.0 ** max(0, infra_failures - 1)
        case "Evicted", _:
            pass
        case "Stopped", Reason.PREEMPTED:
            pause -= EVICTION_DELAY_S  # at once, the first time
        case _:
            return 0.0
    return min(LONGEST_DELAY_S, pause) * (0.8 + 0.4 * zlib.crc32(last.job.encode()) / 2**32)


def _in_a_row(attempts: Sequence[AttemptStatus]) -> int:
    """Disruptions at the end of the book that followed each other quickly: a cluster that has no peace gets longer pauses."""
    count = 0
    for attempt in reversed(attempts):
        if attempt.outcome != "Evicted" and attempt.reason != Reason.PREEMPTED:
            break
        count += 1
        started, finished = seconds_of(attempt.started), seconds_of(attempt.finished)
        if started is not None and finished is not None and finished - started > _GOT_SOMEWHERE_S:
            break
    return count
