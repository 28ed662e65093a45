"""Numbers that a pod told us, as they may stand in a status."""

from __future__ import annotations

import math
from collections.abc import Iterable

LIMIT = 2**53


def shown(value: float | None, digits: int) -> float | None:
    """Rounded to `digits` decimals; None for what JSON cannot say (NaN, infinity) and for what nobody would believe."""
    if value is None or not math.isfinite(value) or abs(value) > LIMIT:
        return None
    return round(value, digits)


def fit(values: Iterable[object]) -> bool:
    """Whether a status can hold every number of them."""
    return all(math.isfinite(v) and abs(v) <= LIMIT for v in values if isinstance(v, int | float))
