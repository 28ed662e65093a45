"""Where in a text something is that must not be shown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Span(NamedTuple):
    """`text[start:end]` is of this kind: a personal datum or a secret."""

    start: int
    end: int
    kind: str


def disjoint(spans: Iterable[Span]) -> list[Span]:
    """In order. Where some overlap, the first and longest of them stands for all, to where the last of them ends."""
    kept: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        if not kept or span.start >= kept[-1].end:
            kept.append(span)
        elif span.end > kept[-1].end:
            kept[-1] = kept[-1]._replace(end=span.end)
    return kept
