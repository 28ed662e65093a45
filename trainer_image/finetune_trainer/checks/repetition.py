"""Texts that repeat themselves for long, as models do that do not find an end."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from finetune_api.checks import CheckCode

from finetune_trainer.checks.checker import Found, Hits, Seen
from finetune_trainer.checks.masking import excerpt
from finetune_trainer.checks.row import Batch
from finetune_trainer.checks.wording import of_rows

_SHARE, _PHRASES = 0.6, 60
"""Most of a row's phrases were there before, and at least this many of them."""
_RUN = 200
"""Equal characters one after another."""


class Repetition:
    codes: tuple[CheckCode, ...] = ("Repetition",)

    def __init__(self) -> None:
        self._hits = Hits()

    def see(self, batch: Batch) -> None:
        sizes = np.diff(batch.offsets.astype(np.int64))
        repeats = _repeats(batch.shingles, sizes)
        repeating = (repeats >= _PHRASES) & (repeats >= _SHARE * sizes)
        for number in np.flatnonzero(repeating | (batch.longest_runs >= _RUN)):
            row = batch.rows[number]
            self._hits.add(row, None if self._hits.full else excerpt(row.text, len(row.text) - 100))

    def found(self, seen: Seen) -> Iterable[Found]:
        if self._hits.count:
            message = of_rows(self._hits.count, seen.all_rows, "repeats itself", "repeat themselves")
            yield Found(
                "Repetition", self._hits.count, seen.all_rows, message + " for most of their length", self._hits.first
            )


def _repeats(shingles: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """How many of each row's shingles it had before: int64 of shape [rows]."""
    rows = np.repeat(np.arange(len(sizes), dtype=np.uint64), sizes)
    marked = np.sort(shingles >> np.uint64(12) | rows << np.uint64(52))
    again = marked[1:][marked[1:] == marked[:-1]] >> np.uint64(52)
    return np.bincount(again.astype(np.int64), minlength=len(sizes))
