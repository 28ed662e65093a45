"""From examples to token ids, with the tokens that the loss counts and the place where the last answer begins.

What every task's encoder does is said by `RowEncoder`; the one here is that of causal language models.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from finetune_api.data import DataFormat, LossOn

from finetune_trainer.data.chat import ChatRenderer, Message, Rendered, TemplateRefused
from finetune_trainer.data.formats import Example
from finetune_trainer.data.spans import common_prefix

RENDERER_VERSION = 4
"""Changes when the same rows would give other tokens or masks."""


def default_loss_on(form: DataFormat) -> LossOn:
    """What the loss counts where the user does not say. Of no meaning for classification."""
    return {"messages": "assistant", "text": "all"}.get(form, "completion")  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Encoded:
    """`ids` int32 and `mask` bool, both of shape [length]; `prompt_length` tokens precede the last answer."""

    ids: np.ndarray
    mask: np.ndarray
    prompt_length: int
    special_text: bool = False
    """The row's own text holds something that the tokenizer reads as a special token."""
    lost_answers: int = 0
    """Earlier answers that should be trained, but are not written whole in the rendered conversation."""
    rendered: Rendered | None = None
    """Of a conversation, the text that its ids spell, against which the proof compares them."""


class RowEncoder(Protocol):
    """Encodes batches of examples of one format for one task."""

    learns_tokens: bool
    """Whether a row without a trained token teaches nothing."""

    def encode(self, examples: Sequence[Example]) -> list[Encoded | str]:
        """One result an example, in order: what was encoded, or why it could not be."""
        ...

    def length(self, row: Encoded) -> int:
        """Tokens of a row that the model reads as one sequence: what maxLength bounds."""
        ...

    def shortened(self, example: Example, row: Encoded, max_length: int) -> Encoded:
        """A row that is too long, cut to `max_length`."""
        ...

    def stop_ids(self) -> list[int]:
        """Ids that end generation; empty for a task that generates nothing."""
        ...


class Encoder:
    """See `RowEncoder`. For causal language models; the tokenizer works on all cores."""

    learns_tokens = True

    def __init__(
        self, tokenizer: Any, form: DataFormat, loss_on: LossOn, template_arguments: dict[str, Any] | None = None
    ) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_padding()
        self._backend.no_truncation()
        self._bos: int | None = tokenizer.bos_token_id
        self._eos: int = tokenizer.eos_token_id
        self._special = tuple(tokenizer.all_special_tokens)
        self._loss_on = loss_on
        self._chat = ChatRenderer(tokenizer, template_arguments) if form in ("messages", "instruction") else None

    def encode(self, examples: Sequence[Example]) -> list[Encoded | str]:
        return self._conversations(examples) if self._chat else self._texts(examples)

    def stop_ids(self) -> list[int]:
        """Ids that end generation: the tokenizer's end token, and the token that ends an assistant's turn."""
        stops = {self._eos}
        if self._chat:
            turns = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
            with contextlib.suppress(TemplateRefused):
                stops.add(self._backend.encode(self._chat.render(turns).text, add_special_tokens=False).ids[-1])
        return sorted(stops)

    def length(self, row: Encoded) -> int:
        return len(row.ids)

    def shortened(self, example: Example, row: Encoded, max_length: int) -> Encoded:
        """Its first tokens: of an answer that is cut, the end is not learnt."""
        return replace(
            row,
            ids=row.ids[:max_length],
            mask=row.mask[:max_length],
            prompt_length=min(row.prompt_length, max_length),
        )

    def _conversations(self, examples: Sequence[Example]) -> list[Encoded | str]:
        assert self._chat
        rendered: list[Rendered | str] = []
        every = self._loss_on != "completion"
        for example in examples:
            try:
                rendered.append(
                    self._chat.render(example.messages or (), example.tools, example.untrained, every=every)
                )
            except TemplateRefused as error:
                rendered.append(f"cannot be rendered by the model's chat template: {error}")
        good = [row for row in rendered if isinstance(row, Rendered)]
        several = self._loss_on == "assistant" and any(len(row.answers) > 1 for row in good)
        several = several or any(example.untrained for example in examples)
        encode = self._backend.encode_batch if several else self._backend.encode_batch_fast
        texts = iter(encode([row.text for row in good], add_special_tokens=False))
        prompts = iter(self._backend.encode_batch_fast([row.prompt for row in good], add_special_tokens=False))
        return [
            row if isinstance(row, str) else self._conversation(example, row, next(texts), next(prompts).ids)
            for example, row in zip(examples, rendered, strict=True)
        ]

    def _conversation(self, example: Example, row: Rendered, text: Any, prompt: list[int]) -> Encoded:
        ids = text.ids
        prompt_length = common_prefix(prompt, ids)
        if prompt_length < len(prompt):
            prompt_length = self._tokens_before(row.text, common_prefix(row.prompt, row.text), special=False)
        mask = np.zeros(len(ids), dtype=bool)
        mask[0 if self._loss_on == "all" else prompt_length :] = True
        messages = example.messages or ()
        last = len(messages) - 1
        if last in example.untrained and self._loss_on != "all":
            mask[:] = False
        if self._loss_on != "completion" and (len(row.answers) > 1 or example.untrained):
            spans = np.array(text.offsets, dtype=np.int64)
            for span, turn in zip(row.answers, row.turns or (-1,) * len(row.answers), strict=True):
                if turn in example.untrained:
                    mask &= ~_within(spans, span)
                elif span != row.answers[-1]:
                    mask |= _within(spans, span)
        special = any(holds_any(self._special, words_of(message)) for message in messages)
        lost = 0
        if self._loss_on != "completion":
            lost = max(0, sum(message["role"] == "assistant" for message in messages) - len(row.answers))
        return Encoded(np.array(ids, dtype=np.int32), mask, prompt_length, special, lost, row)

    def _texts(self, examples: Sequence[Example]) -> list[Encoded | str]:
        """Text as it stands, with the tokenizer's own begin token and one end token, neither of them twice."""
        wholes = self._backend.encode_batch_fast([(row.prompt or "") + row.completion for row in examples])
        prompts = self._backend.encode_batch_fast([row.prompt or "" for row in examples])
        return [self._text(*row) for row in zip(examples, wholes, prompts, strict=True)]

    def _text(self, example: Example, whole: Any, prompt: Any) -> Encoded:
        ids = self._once(whole.ids)
        if ids[-1:] != [self._eos]:
            ids.append(self._eos)
        plain = example.prompt is None
        prompt_length = (
            len(ids) if plain else self._prompt_length(example.prompt or "", example.completion, prompt, whole, ids)
        )
        mask = np.ones(len(ids), dtype=bool)
        if self._loss_on != "all" and not plain:
            mask[:prompt_length] = False
        special = holds_any(self._special, (example.prompt or "") + example.completion)
        return Encoded(np.array(ids, dtype=np.int32), mask, prompt_length, special)

    def _prompt_length(self, before: str, answer: str, prompt: Any, whole: Any, ids: list[int]) -> int:
        alone = self._once(prompt.ids)
        length = common_prefix(alone, ids)
        if length >= len(alone) - (alone[-1:] == [self._eos]):
            return length
        begins_twice = whole.ids[:2] == [self._bos, self._bos]
        return self._tokens_before(before + answer, len(before), special=True) - begins_twice

    def _tokens_before(self, text: str, at: int, *, special: bool) -> int:
        """Tokens that end at character `at` or before. Asked for where a prompt's own tokens are others than in the whole
        text: a word that goes on in the answer is cut otherwise, perhaps from its beginning."""
        encoding = self._backend.encode(text, add_special_tokens=special)
        return next((place for place, (_, end) in enumerate(encoding.offsets) if end > at), len(encoding))

    def _once(self, ids: list[int]) -> list[int]:
        return once(ids, self._bos, self._eos)


def once(ids: list[int], begin: int | None, end: int) -> list[int]:
    """Without a begin or end token that both the text and the tokenizer wrote."""
    if len(ids) > 1 and ids[0] == ids[1] == begin:
        ids = ids[1:]
    while len(ids) > 1 and ids[-1] == ids[-2] == end:
        ids = ids[:-1]
    return ids


def _within(offsets: np.ndarray, span: tuple[int, int]) -> np.ndarray:
    """Tokens of a span of characters. One that straddles its start belongs to it. `offsets` is int64 of shape [tokens, 2]."""
    start, end = span
    return (offsets[:, 1] > start) & (offsets[:, 0] < end) & (offsets[:, 0] < offsets[:, 1])


def words_of(message: Message) -> str:
    """All text of a message: content, thoughts and calls."""
    said = message["content"] + message.get("reasoning_content", "")
    return said + json.dumps(message["tool_calls"], ensure_ascii=False) if "tool_calls" in message else said


def first_unknown(tokenizer: Any, text: str) -> str:
    """The first characters of a text that become the unknown token; empty where there are none."""
    encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    places = zip(encoding.ids, encoding.offsets, strict=True)
    return next((text[start:end] for token, (start, end) in places if token == tokenizer.unk_token_id), "")


def holds_any(special: Sequence[str], text: str) -> bool:
    """Whether a text holds one of these special tokens."""
    return any(token in text for token in special)
