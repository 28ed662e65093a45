"""Where an answer departs from the reference, word by word."""

from __future__ import annotations

import difflib
import re
from typing import NamedTuple

_LONGEST = 4000
_ALIKE = 0.6
_WORDS = re.compile(r"\s+|\w+|[^\w\s]")


class Piece(NamedTuple):
    """`kind`: same, extra (not in the reference), missing (only in the reference)."""

    kind: str
    text: str


def pieces(answer: str, reference: str) -> list[Piece]:
    """The answer, marked where it differs. What it lacks is put in only where the two are much alike: else it is noise."""
    old, new = _WORDS.findall(shorten(reference)), _WORDS.findall(shorten(answer))
    found: list[Piece] = []
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    alike = matcher.ratio() >= _ALIKE
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind == "equal":
            found.append(Piece("same", "".join(new[c:d])))
            continue
        if c < d:
            found.append(Piece("extra", "".join(new[c:d])))
        if a < b and alike:
            found.append(Piece("missing", "".join(old[a:b])))
    return found


def shorten(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " …"
