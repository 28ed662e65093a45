"""How long to wait after the nth failure in a row."""

from __future__ import annotations

import random

JITTER = 0.25


def backoff(failures: int, first: float, longest: float, jitter: float = JITTER) -> float:
    """Seconds: doubling from `first` up to `longest`, plus or minus a share of `jitter`. `failures` counts from 1."""
    return min(longest, first * 2.0 ** min(failures - 1, 60)) * random.uniform(1 - jitter, 1 + jitter)
