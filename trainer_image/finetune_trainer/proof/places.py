"""Where the messages of a conversation stand in the text that a chat template made of it, found without the template's help."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

Span = tuple[int, int]


class Places(NamedTuple):
    """`spans` of each message's content in bytes, None where it was not found. `certain`: which of them can be nowhere else."""

    spans: list[Span | None]
    certain: list[bool]


_REWRITTEN = ("assistant", "tool")
"""Turns whose contents many templates rewrite: earlier answers lose their thoughts, what tools say is quoted."""


def find(text: bytes, contents: Sequence[bytes], messages: Sequence[Any]) -> Places:
    """Places of contents that follow one another, each as early as can be; and which are the same when each is as late as can be.

    Templates may leave a content out or rewrite it; a short one may stand in the template too. A place is certain only
    if the next content is found behind it: or it might be that one's own words. Where any content but those of _REWRITTEN
    is not found in order, then only what stands in the text once, and in no answer, is certain.
    """
    first: list[Span | None] = []
    cursor, last, complete = 0, len(contents) - 1, True
    for turn, content in enumerate(contents):
        start = text.find(content, cursor) if content else -1
        if start >= 0:
            cursor = start + len(content)
            first.append((start, cursor))
        else:
            first.append(None)
            complete &= not content or (messages[turn]["role"] in _REWRITTEN and turn != last)
    if not complete:
        return _one_by_one(text, contents, messages)
    certain, cursor, next_found = [False] * len(first), len(text), True
    for turn in range(last, -1, -1):
        content, span = contents[turn], first[turn]
        if not content:
            continue
        start = text.rfind(content, 0, cursor)
        if start >= 0:
            certain[turn] = next_found and span is not None and span[0] == start
            cursor = start
        next_found = span is not None
    return Places(first, certain)


def _one_by_one(text: bytes, contents: Sequence[bytes], messages: Sequence[Any]) -> Places:
    answers = [content for content, message in zip(contents, messages, strict=True) if message["role"] == "assistant"]
    spans: list[Span | None] = []
    certain = []
    for content, message in zip(contents, messages, strict=True):
        start = text.find(content) if content else -1
        spans.append((start, start + len(content)) if start >= 0 else None)
        is_answer = message["role"] == "assistant" or any(content in answer for answer in answers)
        certain.append(start >= 0 and not is_answer and text.find(content, start + 1) < 0)
    return Places(spans, certain)
