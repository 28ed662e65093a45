"""Where one turn of a conversation stands in its rendered text, found by rendering the conversation with that turn changed.

For templates that write a turn otherwise when it is the last one, so that no shorter conversation is the beginning of a
longer one: those of reasoning models, and those that list the tools before the last question.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

THOUGHT_BEGINS, THOUGHT_ENDS = "<think>", "</think>"
_TAG = re.compile(f"{THOUGHT_BEGINS}|{THOUGHT_ENDS}")
Messages = Sequence[dict[str, Any]]
Render = Callable[..., str]
"""render(messages, generation_prompt=False). Raises ValueError."""

_MARKS = ("\u00a7", "\u00b6", "\u2042")
"""What a turn is changed to: a character that it neither begins nor ends with."""


def common_prefix(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Length of the longest common prefix of two strings or two lists."""
    shorter = min(len(first), len(second))
    if first[:shorter] == second[:shorter]:
        return shorter
    low, high = 0, shorter  # equal up to low, different up to high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if first[low:middle] == second[low:middle] else (low, middle)
    return low


def holds(text: str, words: str) -> bool:
    """Whether words are in a text, but for white space and think tags, which templates move and rename."""
    return words.strip() in text or all("".join(part.split()) in "".join(text.split()) for part in _TAG.split(words))


def thought_apart(message: dict[str, Any]) -> tuple[str, str]:
    """The thought and the content of an answer, which may have both in its content; each without white space around it."""
    thought, content = message.get("reasoning_content", ""), message["content"]
    if not thought and THOUGHT_ENDS in content:
        thought, _, content = content.partition(THOUGHT_ENDS)
        thought = thought.partition(THOUGHT_BEGINS)[2] or thought
    return thought.strip(), content.strip()


def left_out(message: dict[str, Any], written: str) -> str | None:
    """What of an answer is not in the text that a template made of it; None where all is."""
    if not holds(written, message["content"]):
        return "part of the content"
    if not holds(written, message.get("reasoning_content", "")):
        return "the reasoning_content"
    start = 0
    for call in message.get("tool_calls", ()):
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        start = written.find(name, start) + len(name)
        if start < len(name) or not all(key in written for key in arguments if key.isidentifier()):
            return "tool calls"
    return None


def content_of(render: Render, messages: Messages, number: int, text: str) -> tuple[int, int] | None:
    """The span in `text` of a turn's content, with white space around it. None where it is not there as it is."""
    content = messages[number]["content"].strip()
    span = _changed(render, messages, number, text)
    return span if span is not None and content and text[slice(*span)].strip() == content else None


def call_of(
    render: Render, messages: Messages, number: int, text: str, begins: int | None, ends: re.Pattern[str]
) -> tuple[int, int] | None:
    """The span of a turn that calls tools, up to the token that ends it. `begins`: where it is known to begin; `ends` finds end tokens.

    None where it cannot be told. Another turn follows this one.
    """
    start = begins if begins is not None else _begin(render, messages, number, text)
    calls = messages[number]["tool_calls"]
    other = {**calls[-1], "function": {"name": _MARKS[0], "arguments": {_MARKS[1]: _MARKS[2]}}}
    if isinstance(calls[-1]["function"]["arguments"], str):
        other["function"]["arguments"] = f'{{"{_MARKS[1]}": "{_MARKS[2]}"}}'
    changed = _render(render, _with(messages, number, {**messages[number], "tool_calls": [*calls[:-1], other]}))
    following = _changed(render, messages, number + 1, text)
    if start is None or changed is None or following is None:
        return None
    written = len(text) - _common_suffix(text, changed)
    end = ends.search(text, max(written, start), following[0])
    return (start, end.end()) if end and start < end.start() else None


def begin_of_call(render: Render, messages: Messages, text: str, latest: int) -> int:
    """Where the last turn, which calls tools, begins: `latest`, or before it where a plain answer would part from it earlier."""
    plain = _render(render, [*messages[:-1], {"role": "assistant", "content": _MARKS[0]}])
    return latest if plain is None else min(latest, common_prefix(text, plain))


def _begin(render: Render, messages: Messages, number: int, text: str) -> int | None:
    """Where an answer begins: as far behind the turn before it as in the conversation that is cut there."""
    try:
        before = render(messages[:number], generation_prompt=True)
        changed = render(_marked(messages[:number], number - 1), generation_prompt=True)
    except ValueError:
        return None
    here = _changed(render, messages, number - 1, text)
    tail = before[common_prefix(before, changed) :]
    return here[0] + len(tail) if here is not None and tail and text.startswith(tail, here[0]) else None


def _changed(render: Render, messages: Messages, number: int, text: str) -> tuple[int, int] | None:
    changed = _render(render, _marked(messages, number))
    if changed is None or changed == text:
        return None
    start = common_prefix(text, changed)
    return start, max(start, len(text) - _common_suffix(text[start:], changed[start:]))


def _marked(messages: Messages, number: int) -> list[dict[str, Any]]:
    content = messages[number]["content"].strip()
    mark = next(mark for mark in _MARKS if not (content.startswith(mark) or content.endswith(mark)))
    return _with(messages, number, {**messages[number], "content": mark})


def _with(messages: Messages, number: int, message: dict[str, Any]) -> list[dict[str, Any]]:
    return [*messages[:number], message, *messages[number + 1 :]]


def _render(render: Render, messages: Messages) -> str | None:
    try:
        return render(messages)
    except ValueError:
        return None


def _common_suffix(first: str, second: str) -> int:
    return common_prefix(first[::-1], second[::-1])
