"""Which changes of a status are worth a write of their own: it is the dearest write there is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def can_wait(before: Mapping[str, Any], change: Mapping[str, Any]) -> bool:
    """Whether nothing changed but when a first pod began, which goes with the next write. What a pod said when it ended cannot
    wait: the pod may be gone by then."""
    return change.keys() == {"attempts"} and _book(before.get("attempts")) == _book(change["attempts"])


def _book(attempts: Any) -> list[dict[str, Any]]:
    return [{name: value for name, value in attempt.items() if name != "started"} for attempt in attempts or ()]
