"""Personal data and secrets in the texts of a row, written as what they are: [EMAIL], [PHONE], [SECRET]."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from finetune_api import secret_patterns

from finetune_trainer.checks import pii

_SIGNS = {"email": "[EMAIL]", "phone": "[PHONE]", "card": "[CARD]", "iban": "[IBAN]", "national-id": "[ID]"}
_SECRET = "[SECRET]"
_STRUCTURE = frozenset({"role", "from", "type", "id", "tool_call_id"})
"""Fields that say what belongs together: a row would fall apart without them."""
_LABELS = frozenset({"label", "labels"})

Finder = Callable[[str], Sequence[Any]]
"""Gives spans with `start`, `end` and `kind`, disjoint and in order."""
FINDERS: dict[str, tuple[Finder, dict[str, str]]] = {
    # fix: what finds the spans, and how their kinds are called
    "RedactPii": (pii.spans, pii.KINDS),
    "RedactSecrets": (secret_patterns.spans, secret_patterns.KINDS),
}


def redacted(value: dict[str, Any], find: Finder, counts: Counter[str]) -> dict[str, Any] | None:
    """A copy of a row in which whatever `find` finds in its texts is replaced; None where nothing is. `counts` by kind.

    All texts, those too that are not trained on: the mended file holds them as well. Not the labels of a classifier.
    """
    before = counts.total()
    mended = {name: part if name in _LABELS else _mended(name, part, find, counts) for name, part in value.items()}
    return mended if counts.total() > before else None


def _mended(name: str, value: Any, find: Finder, counts: Counter[str], *, numbers: bool = False) -> Any:
    """A copy, however deep it is nested. `numbers`: those that `find` finds something in, such as a card's, too."""
    whole = [value]
    todo: list[tuple[Any, Any, str]] = [(whole, 0, name)]
    while todo:
        into, at, name = todo.pop()
        part = into[at]
        if isinstance(part, str):
            into[at] = part if name in _STRUCTURE else _written(name, part, find, counts)
        elif isinstance(part, dict):
            into[at] = part = dict(part)
            todo += [(part, field, field) for field in reversed(part)]
        elif isinstance(part, list):
            into[at] = part = list(part)
            todo += [(part, index, name) for index in reversed(range(len(part)))]
        elif numbers and isinstance(part, int | float) and find(str(part)):
            into[at] = _text(str(part), find, counts)
    return whole[0]


def _written(name: str, text: str, find: Finder, counts: Counter[str]) -> str:
    """JSON that stands in a text, as tables and tool calls hold it, stays JSON: a span that would break it is mended in what it says."""
    found: Counter[str] = Counter()
    mended = _text(text, find, found)
    if text[:1] in ("[", "{") and found and _json(mended) is None and (value := _json(text)) is not None:
        found.clear()
        mended = json.dumps(_mended(name, value, find, found, numbers=True), ensure_ascii=False)
        rest: Counter[str] = Counter()
        again = _text(mended, find, rest)  # what only shows beside the name of its field
        if _json(again) is not None:
            mended, found = again, found + rest
    counts.update(found)
    return mended


def _json(text: str) -> Any:
    """None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _text(text: str, find: Finder, counts: Counter[str]) -> str:
    spans = find(text)
    if not spans:
        return text
    parts, cursor = [], 0
    for span in spans:
        parts += [text[cursor : span.start], _SIGNS.get(span.kind, _SECRET)]
        cursor = span.end
        counts[span.kind] += 1
    return "".join([*parts, text[cursor:]])
