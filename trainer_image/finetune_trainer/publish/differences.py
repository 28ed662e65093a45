"""Where an answer departs from the reference, word by word."""

from __future__ import annotations

import difflib
import re
from typing import NamedTuple

_LONGEST = 4000
_RELATED, _ALIKE = 0.3, 0.6
_WORDS = re.compile(r"\s+|\w+|[^\w\s]")


class Piece(NamedTuple):
    """`kind`: same, extra (not in the reference), missing (only in the reference)."""

    kind: str
    text: str


def pieces(answer: str, reference: str) -> list[Piece]:
    """The answer, marked where it differs. What it lacks is put in only where the two are much alike; where they have
    little in common nothing is marked: it would be noise."""
    old, new = _WORDS.findall(shorten(reference)), _WORDS.findall(shorten(answer))
    found: list[Piece] = []
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    ratio = _alike(old, new)
    if ratio < _RELATED:
        return [Piece("same", "".join(new))] if new else []
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind == "equal":
            found.append(Piece("same", "".join(new[c:d])))
            continue
        if c < d:
            found.append(Piece("extra", "".join(new[c:d])))
        if a < b and ratio >= _ALIKE:
            found.append(Piece("missing", "".join(old[a:b])))
    return found


def shorten(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " …"


def _alike(old: list[str], new: list[str]) -> float:
    """0 to 1: the share of words that two texts have in common, in order."""
    first, second = ([word for word in words if not word.isspace()] for words in (old, new))
    return difflib.SequenceMatcher(None, first, second, autojunk=False).ratio()
