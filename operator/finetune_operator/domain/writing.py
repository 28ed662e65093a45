"""Which changes of a status are worth a write of their own: it is the dearest write there is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_DETAILS = {"attempts", "checkpoints", "lastCheckpoint"}


def can_wait(before: Mapping[str, Any], change: Mapping[str, Any]) -> bool:
    """Whether the change holds details alone (when a first pod began, the step of one that ended), which go with the next write.

    An attempt that is new, or whose outcome is, cannot wait.
    """
    if not change.keys() <= _DETAILS:
        return False
    return "attempts" not in change or _book(before.get("attempts")) == _book(change["attempts"])


def _book(attempts: Any) -> list[tuple[str, str]]:
    return [(attempt["job"], attempt["outcome"]) for attempt in attempts or ()]
