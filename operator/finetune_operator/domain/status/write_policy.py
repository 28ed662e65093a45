"""Which changes of a status are worth a write of their own: it is the dearest write there is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_OF_A_START = {"phase", "reason", "message", "conditions", "attempts", "progress", "state"}


def can_wait(before: Mapping[str, Any], change: Mapping[str, Any], just_started: bool, just_ended: bool) -> bool:
    """Whether a change goes with the next write.

    When the first pod started always does. That all run does while a first progress value is about to follow
    (`just_started`), and what the pods reported when they ended while the end of their Job is (`just_ended`): it is read from
    the pods again after a restart, and a stage whose pods are gone by then reports once more.
    """
    old, new = before.get("attempts"), change.get("attempts", before.get("attempts"))
    if just_ended:
        return _outcomes(old) == _outcomes(new)
    if _without_starts(old) != _without_starts(new):
        return False
    return change.keys() == {"attempts"} or (just_started and change.keys() <= _OF_A_START)


def _outcomes(attempts: Any) -> list[tuple[str, str]]:
    return [(attempt["job"], attempt["outcome"]) for attempt in attempts or ()]


def _without_starts(attempts: Any) -> list[dict[str, Any]]:
    return [{name: value for name, value in attempt.items() if name != "started"} for attempt in attempts or ()]
