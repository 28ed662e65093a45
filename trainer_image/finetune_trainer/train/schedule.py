"""The learning rate as a pure function of the step, so that a resumed run needs no state for it."""

from __future__ import annotations

import math


def learning_rate(step: int, *, steps: int, peak: float, schedule: str, warmup_ratio: float) -> float:
    """Rate of `step` (from 0) of a training of `steps`. It rises linearly over ceil(warmup_ratio * steps) steps, never from 0, and then follows `schedule`."""
    warmup = math.ceil(warmup_ratio * steps)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if schedule == "constant":
        return peak
    left = (steps - step) / max(1, steps - warmup)
    if schedule == "linear":
        return peak * left
    return peak * 0.5 * (1.0 + math.cos(math.pi * (1.0 - left)))
