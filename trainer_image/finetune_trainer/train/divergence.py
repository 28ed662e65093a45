"""Finds a training that has gone astray while its loss is still a number. Pure arithmetic over the losses that are told.

The rule, robust against single bad batches, spikes that pass, and noise: the median of the last five told losses has been
above a limit for a twentieth of the steps (at least 50, at most 500), and was not on its way back. The limit lies above the best such median by the
largest of 1 nat, half of that best, and four times the usual distance between neighbouring losses. Trainings of fewer
than 200 steps are too short to tell a divergence from an ordinary beginning, and are left alone.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass
from typing import Any

LEAST_STEPS = 200
_WINDOW = 5
_MARGIN_NATS, _MARGIN_SHARE, _MARGIN_SPREADS = 1.0, 0.5, 4.0


@dataclass(frozen=True, slots=True)
class Astray:
    """Smoothed losses in nats: what it is now, the best there was and after which step, and when it was seen above the limit first."""

    now: float
    best: float
    best_step: int
    since: int


class Divergence:
    """Of a training of `steps`."""

    def __init__(self, steps: int) -> None:
        self._on = steps >= LEAST_STEPS
        self._patience = min(500, max(50, steps // 20))
        self._last: deque[float] = deque(maxlen=_WINDOW)
        self._moves: deque[float] = deque(maxlen=50)
        self._best: tuple[float, int] | None = None
        self._since: int | None = None
        self._low = 0.0, 0
        """The lowest median since then, and its step: while new ones come, it is on its way back."""

    def take(self, step: int, loss: float) -> Astray | None:
        """The mean loss of the steps up to `step`, in nats; what went wrong, if it has."""
        self._last.append(loss)
        if not self._on or len(self._last) < _WINDOW:
            return None
        smooth = statistics.median(self._last)
        spread = statistics.median(self._moves) if self._moves else 0.0
        if self._best is None or smooth < self._best[0]:
            self._best = smooth, step
        best, best_step = self._best
        limit = best + max(_MARGIN_NATS, _MARGIN_SHARE * abs(best), _MARGIN_SPREADS * spread)
        if smooth <= limit:
            self._since = None
            self._moves.append(abs(loss - self._last[-2]))  # only these: what has gone astray may jump as it likes
            return None
        if self._since is None or smooth < self._low[0]:
            self._since = step if self._since is None else self._since
            self._low = smooth, step
        return Astray(smooth, best, best_step, self._since) if step - self._low[1] >= self._patience else None

    def state(self) -> dict[str, Any]:
        """For a checkpoint: what a resumed run could not find out again."""
        return {} if self._best is None else {"best": list(self._best)}

    def resume(self, state: dict[str, Any]) -> None:
        if "best" in state:
            loss, step = state["best"]
            self._best = float(loss), int(step)
