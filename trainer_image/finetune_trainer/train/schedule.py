"""The learning rate as a pure function of the step, so that a resumed run needs no state for it."""

from __future__ import annotations

import math


def learning_rate(
    step: int, *, steps: int, peak: float, schedule: str, warmup_ratio: float, decay_ratio: float | None = None
) -> float:
    """Rate of `step` (from 0) of a training of `steps`; never 0.

    It rises linearly over ceil(warmup_ratio * steps) steps and then follows `schedule`. `wsd` stays at the peak and
    falls linearly over the last ceil(decay_ratio * steps) steps, or what warm-up leaves of them.
    """
    warmup = math.ceil(warmup_ratio * steps)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if schedule == "constant":
        return peak
    if schedule == "wsd":
        decay = min(math.ceil((decay_ratio or 0.0) * steps), steps - warmup)
        return peak * min(1.0, (steps - step) / (decay + 1))
    left = (steps - step) / max(1, steps - warmup)
    if schedule == "linear":
        return peak * left
    return peak * 0.5 * (1.0 + math.cos(math.pi * (1.0 - left)))
