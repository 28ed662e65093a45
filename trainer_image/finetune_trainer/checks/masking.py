"""How what was found of people and keys is shown: enough to find it again in the row, never enough to use it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

EXCERPT = 200
"""Most characters of a row that are shown."""

_SHOWN_AT_START = {
    "iban": 2,
    "aws-key": 4,
    "github-token": 4,
    "gitlab-token": 6,
    "slack-token": 4,
    "google-key": 4,
    "openai-key": 3,
    "anthropic-key": 7,
    "huggingface-token": 3,
    "stripe-key": 8,
    "npm-token": 4,
    "pypi-token": 5,
}
"""Characters that belong to the kind, not to the one who owns it. Of other kinds nothing is shown."""


class Span(NamedTuple):
    """`text[start:end]` is of this kind: a personal datum or a secret."""

    start: int
    end: int
    kind: str


def disjoint(spans: Iterable[Span]) -> list[Span]:
    """In order; of two that overlap the one that begins first, and of those the longer one."""
    kept: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        if not kept or span.start >= kept[-1].end:
            kept.append(span)
    return kept


def masked(value: str, kind: str) -> str:
    """`j***@e***.com` for addresses, else the kind's own first characters and the length: `AKIA…(20 characters)`."""
    if kind == "email":
        return _masked_address(value)
    return f"{value[: _SHOWN_AT_START.get(kind, 0)]}…({len(value)} characters)"


def _masked_address(value: str) -> str:
    local, _, domain = value.rpartition("@")
    name, _, ending = domain.rpartition(".")
    return f"{_first_of(local)}***@{_first_of(name)}***.{ending}"


def _first_of(word: str) -> str:
    """Nothing of a word so short that its first letter says most of it."""
    return word[0] if len(word) > 2 else ""


def covered(text: str, spans: Iterable[Span]) -> str:
    """The text with each span masked. `spans` are disjoint and in order."""
    parts, end = [], 0
    for span in spans:
        parts += [text[end : span.start], masked(text[span.start : span.end], span.kind)]
        end = span.end
    return "".join([*parts, text[end:]])
