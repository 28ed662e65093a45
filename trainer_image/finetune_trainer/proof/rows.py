"""What rows should look like, before that is compared with what they are: the text that their tokens spell, and which spans
of it must be masked and which must be learnt. From the examples and the rendered text alone, never from a mask.

A row costs a few microseconds here, and there are many: hence plain tuples, and words only for what is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from finetune_api.data import LossOn

from finetune_trainer.data.encode import Encoded
from finetune_trainer.data.formats import Example
from finetune_trainer.data.spans import common_prefix
from finetune_trainer.proof import places
from finetune_trainer.proof.places import Span
from finetune_trainer.proof.spelling import Spelt

What = Literal["gap", "prompt", "turn", "answer", "completion", "all"]
_WORDS: dict[What, str] = {
    "gap": "what the template writes around the answers",
    "prompt": "text of the prompt",
    "answer": "part of the last answer",
    "completion": "part of the completion",
    "all": "part of the row",
}


class Mark(NamedTuple):
    """A begin or end token, and what it spells. `id` -1: there is none."""

    id: int
    text: bytes


class Claim(NamedTuple):
    """A span of a row's text (bytes), whose tokens are all masked (`trained` 0) or all learnt (1). `turn`: the message's number."""

    row: int
    start: int
    end: int
    trained: int
    what: What
    turn: int = -1

    def named(self, example: Example) -> str:
        if self.what == "turn" and example.messages:
            return f"text of the {example.messages[self.turn]['role']}'s turn (messages[{self.turn}])"
        return _WORDS[self.what]


class Expected:
    """Of a batch of rows, added in order: `texts`, `claims`, `own` (the spans that are the rows' own text, not the template's,
    ascending) as (row, start, end), and `ends`, whether the end of each is learnt."""

    def __init__(self, loss_on: LossOn) -> None:
        self.texts: list[Spelt] = []
        self.claims: list[tuple[Any, ...]] = []
        self.own: list[tuple[int, int, int]] = []
        self.ends: list[bool] = []
        self._every, self._all = loss_on == "assistant", loss_on == "all"

    def conversation(self, example: Example, row: Encoded) -> None:
        """A row that was rendered by a chat template."""
        rendered, messages, number = row.rendered, example.messages, len(self.texts)
        assert rendered is not None, "a conversation that the encoder rendered"
        assert messages is not None
        text = rendered.text.encode()
        *earlier, (start, end) = rendered.answers
        # what a template writes behind its own generation prompt is the model's to write, marked or not
        answers = [*earlier, (min(start, common_prefix(rendered.prompt, rendered.text)), end)]
        if len(text) != len(rendered.text):
            answers = [_in_bytes(rendered.text, span) for span in answers]
        contents = [_content(message) for message in messages]
        found = places.find(text, contents, messages)
        last = len(messages) - 1
        self.texts.append(Spelt(text))
        self.ends.append(last not in example.untrained)
        self._add_own(number, messages, found.spans, dict(zip(rendered.turns, answers, strict=False)))
        if self._all and not example.untrained:
            self.claims.append((number, 0, len(text), 1, "all"))
            return
        for turn, span in enumerate(found.spans):
            if span is None or not found.certain[turn]:
                continue
            learnt = messages[turn]["role"] == "assistant" or self._all
            if turn in example.untrained or not learnt or not (turn == last or self._every or self._all):
                self.claims.append((number, *span, 0, "turn", turn))
        if last not in example.untrained:
            self.claims.append((number, *answers[-1], 1, "answer"))
        if self._all:
            return
        cursor = 0
        for start, end in answers if self._every else answers[-1:]:
            self.claims.append((number, cursor, start, 0, "gap"))
            cursor = end

    def text(self, example: Example, row: Encoded, begin: Mark, end: Mark) -> None:
        """Plain text, or a prompt and its completion."""
        number = len(self.texts)
        prompt = (example.prompt or "").encode()
        body = prompt + example.completion.encode()
        before = begin.text if row.ids[0] == begin.id and not body.startswith(begin.text) else b""
        after = b"" if body.endswith(end.text) else end.text
        start, stop = len(before) + len(prompt), len(before) + len(body)
        self.texts.append(Spelt(body, before, after))
        self.ends.append(True)
        self.own.append((number, len(before), stop))
        if example.prompt is None or self._all:
            self.claims.append((number, 0, stop + len(after), 1, "all"))
        else:
            self.claims.append((number, 0, start, 0, "prompt"))
            self.claims.append((number, start, stop + len(after), 1, "completion"))

    def _add_own(
        self, number: int, messages: Sequence[Any], spans: Sequence[Span | None], answers: dict[int, Span]
    ) -> None:
        """The messages' contents; of an answer that calls tools all of it, which the template wrote from the row's own words."""
        if any("tool_calls" in message for message in messages):
            spans = [
                answers.get(turn) if "tool_calls" in message else span
                for turn, (message, span) in enumerate(zip(messages, spans, strict=True))
            ]
        self.own += [(number, *span) for span in spans if span is not None]


class Spans(NamedTuple):
    """Columns of (row, start, end, ...), each int64 of shape [spans]."""

    rows: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, spans: Sequence[tuple[Any, ...]]) -> Spans:
        return cls(*(np.fromiter((span[place] for span in spans), np.int64, len(spans)) for place in range(3)))


def _content(message: dict[str, Any]) -> bytes:
    content = message.get("content")
    return content.strip().encode() if isinstance(content, str) else b""


def _in_bytes(text: str, span: Span) -> Span:
    return len(text[: span[0]].encode()), len(text[: span[1]].encode())
