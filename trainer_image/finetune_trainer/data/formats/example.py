"""What a row says, whatever form it was written in."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from finetune_api.checks import CheckCode

from finetune_trainer.data.chat import Message

Label = str | int | bool


class InvalidRow(ValueError):
    """Why a row cannot be used, as the end of a sentence that begins with its file and line; and the check that it fails.

    `remedy` is what to do about this very row, where the check's own remedy is too general to be right.
    """

    def __init__(self, reason: str, code: CheckCode, remedy: str | None = None) -> None:
        super().__init__(f"{reason}: {remedy}" if remedy else reason)
        self.reason = reason
        self.code = code
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Example:
    """One row. Conversations (formats messages, instruction) have `messages`; pairs and plain text a `prompt` (None: plain text) and a `completion`.

    Rows for a classifier have their `text`, perhaps a second one (`pair`), and one `label` or a tuple of them.
    """

    messages: tuple[Message, ...] | None = None
    prompt: str | None = None
    completion: str = ""
    text: str = ""
    pair: str | None = None
    label: Label | tuple[Label, ...] | None = None
    tools: tuple[dict[str, Any], ...] | None = None
    """Functions that the assistant may call, in OpenAI's shape, as the chat template takes them."""
    untrained: tuple[int, ...] = ()
    """Places in `messages` of answers that are not learnt, because the row says so."""

    def canonical(self) -> bytes:
        """The content alone: equal for rows that say the same, whatever other fields they carry.

        A label is no content: one text under two labels must not be learnt and tested on.
        """
        content: Any = self.messages if self.messages is not None else [self.prompt, self.completion]
        if self.label is not None:
            content = [self.text, self.pair]
        if self.tools:
            content = [content, self.tools]
        return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
