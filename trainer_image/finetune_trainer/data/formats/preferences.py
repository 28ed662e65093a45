"""Pairs of a better and a worse answer. They are of use for other trainings than this one."""

from __future__ import annotations

from typing import Any

ADVICE = "training on preferences is not supported: keep the better answers, as messages or as prompt and completion"

_PAIRS = (("chosen", "rejected"), ("preferred_output", "non_preferred_output"))


def preference(row: dict[str, Any]) -> str | None:
    """What makes a row one of preferences: the fields of a pair, or KTO's verdict on a completion. None: it is none."""
    for better, worse in _PAIRS:
        if row.get(better) is not None and row.get(worse) is not None:
            return f"pairs {better} with {worse}"
    if isinstance(row.get("label"), bool) and row.get("completion") is not None:
        return "judges its completion by a label of true or false"
    return None
