"""What a row should look like before it is compared with what it is: the text that its tokens spell, which spans of it
must be masked and which must be learnt. From the examples and the rendered text alone, never from the mask."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from finetune_api.data import LossOn

from finetune_trainer.data.encode import Encoded
from finetune_trainer.data.formats import Example
from finetune_trainer.proof import places
from finetune_trainer.proof.places import Span
from finetune_trainer.proof.spelling import Spelt


class Claim(NamedTuple):
    """A span of a row's text (bytes), whose tokens are all masked or all learnt. `what` names it for people."""

    start: int
    end: int
    trained: bool
    what: str


@dataclass(frozen=True, slots=True)
class Expected:
    """`own`: spans that are the row's own text, not the template's, ascending and disjoint. `ends`: whether its end is learnt."""

    text: Spelt
    claims: list[Claim] = field(default_factory=list)
    own: list[Span] = field(default_factory=list)
    ends: bool = True


def of_conversation(example: Example, row: Encoded, loss_on: LossOn) -> Expected:
    """Of a row that was rendered by a chat template."""
    assert row.rendered is not None
    text = row.rendered.text.encode()
    messages = example.messages or ()
    contents = [_content(message) for message in messages]
    last = len(messages) - 1
    required = [message["role"] != "assistant" or number == last for number, message in enumerate(messages)]
    found = places.find(text, contents, required)
    answers = _in_bytes(row.rendered.text, text, row.rendered.answers)
    expected = Expected(Spelt(text), ends=last not in example.untrained)
    expected.own.extend(_own(messages, found.spans, answers))
    if loss_on == "all":
        expected.claims.append(Claim(0, len(text), True, "part of the conversation"))
        return expected
    expected.claims.extend(_between(answers if loss_on == "assistant" else answers[-1:]))
    for number, (message, span) in enumerate(zip(messages, found.spans, strict=True)):
        if span is None or not found.certain[number]:
            continue
        if _is_learnt(number, message["role"], example, loss_on):
            if number == last:
                expected.claims.append(Claim(*span, True, "part of the last answer"))
        else:
            expected.claims.append(Claim(*span, False, f"text of the {message['role']}'s turn, messages[{number}],"))
    return expected


def of_text(example: Example, row: Encoded, loss_on: LossOn, begin: Begin, end: Begin) -> Expected:
    """Of plain text, or of a prompt and its completion."""
    prompt, completion = (example.prompt or "").encode(), example.completion.encode()
    body = prompt + completion
    before = begin.text if row.ids[0] == begin.id and not body.startswith(begin.text) else b""
    after = end.text if not body.endswith(end.text) else b""
    start = len(before) + len(prompt)
    stop = len(before) + len(body)
    plain = example.prompt is None or loss_on == "all"
    claims = [
        Claim(0 if plain else start, stop + len(after), True, "part of the text" if plain else "part of the completion")
    ]
    if not plain:
        claims.append(Claim(0, start, False, "text of the prompt"))
    return Expected(Spelt(body, before, after), claims, [(len(before), stop)])


class Begin(NamedTuple):
    """A begin or end token, and what it spells. `id` -1: there is none."""

    id: int
    text: bytes


def _content(message: dict[str, Any]) -> bytes:
    content = message.get("content")
    return content.strip().encode() if isinstance(content, str) else b""


def _is_learnt(number: int, role: str, example: Example, loss_on: LossOn) -> bool:
    assert example.messages is not None
    last = number == len(example.messages) - 1
    return role == "assistant" and number not in example.untrained and (last or loss_on == "assistant")


def _in_bytes(text: str, data: bytes, spans: tuple[Span, ...]) -> list[Span]:
    if len(text) == len(data):
        return list(spans)
    return [(len(text[:start].encode()), len(text[:end].encode())) for start, end in spans]


def _between(answers: list[Span]) -> list[Claim]:
    """Whatever is no answer is masked."""
    claims, cursor = [], 0
    for number, (start, end) in enumerate(answers):
        if start > cursor:
            claims.append(
                Claim(cursor, start, False, "text between the answers" if number else "text before the first answer")
            )
        cursor = max(cursor, end)
    return claims


def _own(messages: tuple[Any, ...], spans: tuple[Span | None, ...], answers: list[Span]) -> list[Span]:
    """The messages' contents; of an answer that calls tools all of it, which the template wrote from the row's own words."""
    turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    whole = dict(zip(turns, answers, strict=True)) if len(turns) == len(answers) else {}
    own: list[Span] = []
    for number, message in enumerate(messages):
        span = whole.get(number) if message.get("tool_calls") else spans[number]
        if span is not None and (not own or span[0] >= own[-1][1]):
            own.append(span)
    return own
