"""Rows of encoder-decoder models: the source's token ids with the tokenizer's end token, then the target's with its own.

Where the source ends is the row's prompt_length; the target is what is learnt. The two are read by different halves of
the model, so that maxLength bounds each of them, not their sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from finetune_trainer.data.encode import Encoded, holds_any, once
from finetune_trainer.data.formats import Example


class PairEncoder:
    """See `encode.RowEncoder`. Takes pairs of prompt and completion, and instructions with their outputs."""

    learns_tokens = True

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_padding()
        self._backend.no_truncation()
        self._bos: int | None = tokenizer.bos_token_id
        self._eos: int = tokenizer.eos_token_id
        self._special = tuple(tokenizer.all_special_tokens)

    def encode(self, examples: Sequence[Example]) -> list[Encoded | str]:
        pairs = [_pair(example) for example in examples]
        sources = self._ended([source for source, _ in pairs])
        with_target_marks: Callable[[], None] = getattr(self._tokenizer, "_switch_to_target_mode", _nothing)
        with_source_marks: Callable[[], None] = getattr(self._tokenizer, "_switch_to_input_mode", _nothing)
        with_target_marks()  # translation models mark the two languages differently
        try:
            targets = self._ended([target for _, target in pairs])
        finally:
            with_source_marks()
        return [self._row(*row) for row in zip(pairs, sources, targets, strict=True)]

    def length(self, row: Encoded) -> int:
        return max(row.prompt_length, len(row.ids) - row.prompt_length)

    def shortened(self, example: Example, row: Encoded, max_length: int) -> Encoded:
        """Source and target lose their ends, each for itself. A source that was cut still has its end token, which an
        encoder expects; a target has not, or the model would learn to stop in the middle."""
        source, target = row.ids[: row.prompt_length], row.ids[row.prompt_length :]
        if len(source) > max_length:
            source = np.append(source[: max_length - 1], source[-1:])
        target = target[:max_length]
        return replace(row, **_joined(source, target))

    def stop_ids(self) -> list[int]:
        return [self._eos]

    def _ended(self, texts: Sequence[str]) -> list[list[int]]:
        """With whatever the tokenizer adds, and one end token."""
        rows = [once(encoding.ids, self._bos, self._eos) for encoding in self._backend.encode_batch_fast(texts)]
        return [row if row[-1:] == [self._eos] else [*row, self._eos] for row in rows]

    def _row(self, pair: tuple[str, str], source: list[int], target: list[int]) -> Encoded:
        parts = _joined(np.array(source, dtype=np.int32), np.array(target, dtype=np.int32))
        return Encoded(**parts, special_text=holds_any(self._special, pair[0] + pair[1]))


def _pair(example: Example) -> tuple[str, str]:
    if example.messages is not None:
        question, answer = example.messages
        return question["content"], answer["content"]
    return example.prompt or "", example.completion


def _joined(source: np.ndarray, target: np.ndarray) -> dict[str, Any]:
    mask = np.arange(len(source) + len(target)) >= len(source)
    return {"ids": np.concatenate([source, target]), "mask": mask, "prompt_length": len(source)}


def _nothing() -> None:
    """Of tokenizers that know but one kind of text."""
