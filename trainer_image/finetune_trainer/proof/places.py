"""Where the messages of a conversation stand in the text that a chat template made of it, found without the template's help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Places:
    """`spans` of each message's content in bytes, None where it was not found. `certain`: which of them can be nowhere else."""

    spans: tuple[Span | None, ...]
    certain: tuple[bool, ...]


def find(text: bytes, contents: Sequence[bytes], required: Sequence[bool]) -> Places:
    """Places of contents that follow one another, each as early as can be; and which are the same when each is as late as can be.

    Templates may leave a content out or rewrite it; a short one may stand in the template too. Where a `required` one
    is not found in order, nothing is certain: what was found may be something else.
    """
    first = _in_order(text, contents)
    if any(
        needed and span is None and content for needed, span, content in zip(required, first, contents, strict=True)
    ):
        return Places(tuple(first), (False,) * len(first))
    last = _from_the_end(text, contents)
    return Places(tuple(first), tuple(a is not None and a == b for a, b in zip(first, last, strict=True)))


def _in_order(text: bytes, contents: Sequence[bytes]) -> list[Span | None]:
    found: list[Span | None] = []
    cursor = 0
    for content in contents:
        start = text.find(content, cursor) if content else -1
        found.append((start, start + len(content)) if start >= 0 else None)
        cursor = start + len(content) if start >= 0 else cursor
    return found


def _from_the_end(text: bytes, contents: Sequence[bytes]) -> list[Span | None]:
    found: list[Span | None] = []
    cursor = len(text)
    for content in reversed(contents):
        start = text.rfind(content, 0, cursor) if content else -1
        found.append((start, start + len(content)) if start >= 0 else None)
        cursor = start if start >= 0 else cursor
    return found[::-1]
