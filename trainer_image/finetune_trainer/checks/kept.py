"""What is kept of every row until the end: its place, content and prompt, 8 bytes each, and its part, one byte."""

from __future__ import annotations

import numpy as np
from finetune_api.findings import ROWS_SHOWN

from finetune_trainer.checks.checker import Place, Seen
from finetune_trainer.checks.columns import Column
from finetune_trainer.checks.row import Batch, Row, content_key, key

_LINE_BITS = 48
NO_PROMPT = 0


class Kept:
    """Columns of all rows seen. `content` is equal for rows that say the same, `prompt` for rows that ask the same.

    Of rows for a classifier the text is the prompt, and the text with its label the content.
    """

    def __init__(self) -> None:
        self._place, self._content, self._prompt = Column(np.uint64), Column(np.uint64), Column(np.uint64)
        self._part = Column(np.uint8)

    def see(self, batch: Batch) -> None:
        rows = batch.rows
        keys = np.array([_keys(row) for row in rows], dtype=np.uint64)
        self._place.extend(np.array([row.file << _LINE_BITS | row.line for row in rows], dtype=np.uint64))
        self._content.extend(keys[:, 0])
        self._prompt.extend(keys[:, 1])
        self._part.extend(np.array([row.part for row in rows], dtype=np.uint8))

    @property
    def content(self) -> np.ndarray:
        return self._content.whole()

    @property
    def prompt(self) -> np.ndarray:
        return self._prompt.whole()

    @property
    def part(self) -> np.ndarray:
        return self._part.whole()

    def beside(self, rows: np.ndarray, others: np.ndarray, words: str, seen: Seen) -> list[Place]:
        """The first of `rows`, each with `words` and the place of the row that it is compared with."""
        place = self._place.whole()
        return [
            Place(*_unpacked(place[row]), f"{words} {seen.where(*_unpacked(place[other]))}")
            for row, other in zip(rows[:ROWS_SHOWN].tolist(), others[:ROWS_SHOWN].tolist(), strict=True)
        ]


def _keys(row: Row) -> tuple[int, int]:
    content = content_key(row.example)
    if row.example.label is not None:
        return content, key(row.example.canonical())
    return content, NO_PROMPT if row.prompt is None else key(row.prompt)


def _unpacked(place: np.uint64) -> tuple[int, int]:
    return int(place) >> _LINE_BITS, int(place) & ((1 << _LINE_BITS) - 1)


def within_parts(keys: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Keys that are equal within train, validation or test only."""
    return keys + part.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def where_in(sought: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of `sought` are `among` (as indices), and the first index of each there."""
    distinct, first = np.unique(among, return_index=True)
    if not len(distinct):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    places = np.minimum(np.searchsorted(distinct, sought), len(distinct) - 1)
    found = np.flatnonzero(distinct[places] == sought)
    return found, first[places[found]]
