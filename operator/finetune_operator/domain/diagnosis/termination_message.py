"""What a pod reports, sanitized for a status. A pod's image is chosen by its user: one number that the API server refuses would
keep the whole status of a job from being written, and a secret in a text would be shown to everybody who may read it."""

from __future__ import annotations

import functools
import json
import math
from typing import Any

from finetune_api.base import known_fields
from finetune_api.contract import Progress, TerminationMessage
from finetune_api.planner.facts import LENGTH_BINS
from finetune_api.secret_patterns import redact
from pydantic import ValidationError

from finetune_operator.domain.numbers import LIMIT
from finetune_operator.domain.times import seconds_of, stamp

_LONGEST_TEXT = 4096
_DEEPEST = 6
_MOST_ITEMS = 16
_MORE_ITEMS = {"lengths": LENGTH_BINS, "findings": 32}
_UNFIT = object()


@functools.lru_cache(maxsize=1024)
def parse_termination_message(text: str) -> TerminationMessage | None:
    """A termination message; None when the text is none. The same text gives the same object: it must not be written to."""
    fit = _load(text)
    try:
        return (
            TerminationMessage.model_validate(known_fields(TerminationMessage, fit)) if isinstance(fit, dict) else None
        )
    except ValidationError:
        return None


def progress(content: bytes) -> Progress | None:
    """A progress record; None when the answer is none."""
    fit = _load(content)
    try:
        return Progress.model_validate(known_fields(Progress, fit)) if isinstance(fit, dict) else None
    except ValidationError:
        return None


def _load(text: str | bytes) -> Any:
    try:
        return _fit(json.loads(text), _DEEPEST)
    except (ValueError, RecursionError):
        return None


def _fit(value: Any, depth: int, name: str = "") -> Any:
    """The value without what a status cannot hold: NaN, numbers beyond 2^53, times that are none, endless texts and lists."""
    match value:
        case bool() | None:
            return value
        case int() | float():
            return value if abs(value) <= LIMIT and math.isfinite(value) else _UNFIT
        case str() if name == "time":
            seconds = seconds_of(value)  # takes forms that the API server does not
            return value if seconds is not None and stamp(seconds) == value else _UNFIT
        case str():
            return redact(value)[:_LONGEST_TEXT]
        case list() if depth > 0:
            fit = (_fit(item, depth - 1) for item in value[: _MORE_ITEMS.get(name, _MOST_ITEMS)])
            return [item for item in fit if item is not _UNFIT]
        case dict() if depth > 0:
            pairs = ((key, _fit(item, depth - 1, key)) for key, item in value.items())
            return {key: item for key, item in pairs if item is not _UNFIT}
    return _UNFIT
