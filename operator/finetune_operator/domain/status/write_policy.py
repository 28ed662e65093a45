"""Which changes of a status are worth a write of their own: it is the dearest write there is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_OF_A_START = {"phase", "reason", "message", "conditions", "attempts", "progress", "state"}


def can_wait(before: Mapping[str, Any], change: Mapping[str, Any], just_started: bool) -> bool:
    """Whether nothing changed but that pods started. When the first one did goes with the next write, and so does that all run,
    while a first progress value is about to follow (`just_started`). What a pod reported when it ended cannot wait: the pod may
    be gone by then."""
    if _without_starts(before.get("attempts")) != _without_starts(change.get("attempts", before.get("attempts"))):
        return False
    return change.keys() == {"attempts"} or (just_started and change.keys() <= _OF_A_START)


def _without_starts(attempts: Any) -> list[dict[str, Any]]:
    return [{name: value for name, value in attempt.items() if name != "started"} for attempt in attempts or ()]
