"""How a chat template takes tools: found once by rendering a small conversation with a call, since templates disagree.

Most write a call's arguments from an object, some only from its JSON text; Mistral's demand identifiers of nine
characters; many know no tools at all and would leave them out without a word, or take a tool's answer for the assistant's.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Messages = Sequence[dict[str, Any]]
Render = Callable[[Messages, Sequence[dict[str, Any]] | None], str]
"""Gives the text of a conversation with its tools. Raises ValueError with the template's own words."""

_NAME, _PLACE, _ANSWER = "finetune_probe_weather", "Ravello", "finetune-probe-sunny"
_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")
_TOOLS = (
    {
        "type": "function",
        "function": {
            "name": _NAME,
            "description": "Weather.",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
        },
    },
)


@dataclass(frozen=True, slots=True)
class ToolStyle:
    """What a template does with tools, and how it wants them written. The reasons are None where it does as it should."""

    as_text: bool = False
    """Arguments are their JSON text, not an object."""
    short_ids: bool = False
    no_tools: str | None = None
    no_calls: str | None = None
    no_answers: str | None = None

    def refusal(self, messages: Messages, tools: Sequence[dict[str, Any]] | None) -> str | None:
        """Why these messages cannot be written: one clause, or None."""
        if tools and self.no_tools:
            return self.no_tools
        if self.no_calls and any("tool_calls" in message for message in messages):
            return self.no_calls
        return self.no_answers if any(message["role"] == "tool" for message in messages) else None

    def written(self, messages: Messages) -> list[dict[str, Any]]:
        """The messages as the template takes them."""
        if not (self.as_text or self.short_ids):
            return list(messages)
        return _Writer(self).messages(messages)


def has_tools(messages: Messages, tools: Sequence[dict[str, Any]] | None) -> bool:
    """Whether a conversation has to do with tools at all."""
    return bool(tools) or any(message["role"] == "tool" or "tool_calls" in message for message in messages)


def probe(render: Render, marked: Callable[[Messages], str]) -> ToolStyle:
    """The style of a template. `marked` gives what of a conversation it marks as answers; empty where it marks none."""
    styles = [ToolStyle(as_text, short_ids) for as_text in (False, True) for short_ids in (False, True)]
    said: str | None = None
    for style in styles:
        try:
            text = render(style.written(_called()), _TOOLS)
        except ValueError as error:
            said = said or str(error)
            continue
        if all(part in text for part in (_NAME, "place", _PLACE)) and not _is_repr(text):
            break
    else:
        style = ToolStyle(no_calls=f"it does not write tool calls{f' ({said})' if said else ''}{_REMEDY}")
    return ToolStyle(
        style.as_text,
        style.short_ids,
        no_tools=_no_tools(render),
        no_calls=style.no_calls,
        no_answers=_no_answers(style, render, marked),
    )


_REMEDY = ": set data.template to one that does, or write them as plain turns"


def _called(*, role: str = "tool") -> list[dict[str, Any]]:
    call = {"type": "function", "id": "call_1", "function": {"name": _NAME, "arguments": {"place": _PLACE}}}
    return [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": role, "content": _ANSWER, "tool_call_id": "call_1", "name": _NAME},
        {"role": "assistant", "content": "b"},
    ]


def _plain(role: str) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": role, "content": _ANSWER},
        {"role": "assistant", "content": "c"},
    ]


def _is_repr(text: str) -> bool:
    """Whether the arguments stand in a text as Python writes an object, or as a JSON text within JSON."""
    return f"'{_PLACE}'}}" in text or f'\\"{_PLACE}\\"' in text


def _no_tools(render: Render) -> str | None:
    try:
        text = render(_called()[:1], _TOOLS)
    except ValueError as error:
        return f"it takes no tools ({error}){_REMEDY}"
    return None if _NAME in text else f"it does not write the tools{_REMEDY}"


def _no_answers(style: ToolStyle, render: Render, marked: Callable[[Messages], str]) -> str | None:
    """A tool's answer has to be in the text, and must not look like the assistant's, which would be learnt."""
    said = ""
    for turns in (_called, _plain) if style.no_calls is None else (_plain,):
        own = style.written(turns(role="tool"))
        try:
            text = render(own, None)
        except ValueError as error:
            said = said or f" ({error})"
            continue
        if _ANSWER in text and _ANSWER not in marked(own) and text != _as_assistant(render, own):
            return None
    return f"it has no place for what a tool answers{said}{_REMEDY}"


def _as_assistant(render: Render, messages: Messages) -> str | None:
    try:
        return render([{**m, "role": "assistant"} if m["role"] == "tool" else m for m in messages], None)
    except ValueError:
        return None


class _Writer:
    """Writes one conversation in a style."""

    def __init__(self, style: ToolStyle) -> None:
        self._style = style
        self._count = 0
        self._open: list[str] = []
        """Identifiers of the calls that wait for an answer."""

    def messages(self, messages: Messages) -> list[dict[str, Any]]:
        return [self._message(message) for message in messages]

    def _message(self, message: dict[str, Any]) -> dict[str, Any]:
        if "tool_calls" in message:
            self._open = []
            return {**message, "tool_calls": [self._call(call) for call in message["tool_calls"]]}
        if message["role"] == "tool" and self._style.short_ids:
            known = message.get("tool_call_id")
            waiting = self._open.pop(0) if self._open else "000000000"
            return {**message, "tool_call_id": _short(known) if known else waiting}
        return message

    def _call(self, call: dict[str, Any]) -> dict[str, Any]:
        made = dict(call)
        if self._style.as_text:
            arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
            made["function"] = {**call["function"], "arguments": arguments}
        if self._style.short_ids:
            self._count += 1
            made["id"] = _short(call["id"]) if call.get("id") else f"{self._count:09d}"
            self._open.append(made["id"])
        return made


def _short(identifier: str) -> str:
    """Nine letters and digits that stand for an identifier: itself where it is of that kind."""
    if _SHORT_ID.fullmatch(identifier):
        return identifier
    return hashlib.blake2b(identifier.encode(), digest_size=8).hexdigest()[:9]
