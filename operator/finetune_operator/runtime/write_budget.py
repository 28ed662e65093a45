"""How many status writes a second all jobs may make together: they are the dearest requests there are.

What a person or a tool waits for is written at once, whatever the budget. Progress of running trainings comes next, and updates
of texts last.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

_WRITES_A_SECOND = 40.0
_TEXTS = {"message", "conditions", "usage", "lastCheckpoint", "state"}


class WriteBudget:
    """A token bucket. `now` in seconds of a monotonic clock."""

    def __init__(self, rate: float = _WRITES_A_SECOND) -> None:
        self._rate, self._tokens, self._at = rate, rate, 0.0

    def take(self, now: float) -> bool:
        """For a progress value: whether it may be written."""
        return self._take(now, leave=0.0)

    def delay(self, now: float) -> float:
        """For a text: 0 if it may be written, else seconds after which to ask again. Half of the budget is left to progress."""
        return 0.0 if self._take(now, leave=self._rate / 2) else random.uniform(1.0, 3.0)

    def _take(self, now: float, leave: float) -> bool:
        self._tokens = min(self._rate, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1 + leave:
            return False
        self._tokens -= 1
        return True


def only_texts(before: Mapping[str, Any], change: Mapping[str, Any]) -> bool:
    """Whether a change of a status concerns wording alone. Progress has its own place in the budget, taken when it was read."""
    if not before.get("phase") or not change.keys() <= _TEXTS:
        return False
    return "conditions" not in change or _states(before.get("conditions")) == _states(change["conditions"])


def _states(conditions: Any) -> list[tuple[Any, ...]]:
    return [(c.get("type"), c.get("status"), c.get("reason")) for c in conditions or ()]
