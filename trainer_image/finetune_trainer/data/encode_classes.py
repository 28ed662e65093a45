"""Rows of classifiers: a text, or a text and its pair, as the tokenizer writes them for the model, and nothing that is learnt token by token.

prompt_length is where the pair begins (the row's length where there is none), from which the token_type_ids follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from finetune_trainer.data.encode import Encoded, holds_any
from finetune_trainer.data.formats import Example


class ClassEncoder:
    """See `encode.RowEncoder`. The very ids that transformers' text-classification pipeline would give the model."""

    learns_tokens = False

    def __init__(self, tokenizer: Any, *, read_at: int | None = None) -> None:
        """`read_at`: the token at which the model reads its answer, of which each row must have one (an encoder-decoder's end token)."""
        self._read_at = read_at
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_padding()
        self._backend.no_truncation()
        self._special = tuple(tokenizer.all_special_tokens)

    def encode(self, examples: Sequence[Example]) -> list[Encoded | str]:
        encodings = self._backend.encode_batch([_input(example) for example in examples])
        return [self._row(*row) for row in zip(examples, encodings, strict=True)]

    def length(self, row: Encoded) -> int:
        return len(row.ids)

    def shortened(self, example: Example, row: Encoded, max_length: int) -> Encoded:
        """The text loses its end (of a text and its pair, the longer one does); what the tokenizer puts around them stays."""
        self._backend.enable_truncation(max_length, strategy="longest_first")
        try:
            return self._row(example, self._backend.encode_batch([_input(example)])[0])
        finally:
            self._backend.no_truncation()

    def stop_ids(self) -> list[int]:
        return []

    def _row(self, example: Example, encoding: Any) -> Encoded | str:
        ids = np.array(encoding.ids, dtype=np.int32)
        if not len(ids):
            return "gives no token at all: its text holds nothing that the tokenizer knows"
        if self._read_at is not None and (count := int((ids == self._read_at).sum())) != 1:
            return f"has the model's end token {count} times, and a classifier of this kind reads its answer at the only one"
        second = np.array(encoding.type_ids) > 0
        begins = int(second.argmax()) if example.pair is not None and second.any() else len(ids)
        special = holds_any(self._special, example.text + (example.pair or ""))
        return Encoded(ids, np.zeros(len(ids), dtype=bool), begins, special)


def _input(example: Example) -> str | tuple[str, str]:
    return example.text if example.pair is None else (example.text, example.pair)
