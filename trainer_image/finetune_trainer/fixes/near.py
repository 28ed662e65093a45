"""Leaves out rows that say almost the same as an earlier one: the very rows that the check NearDuplicates finds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finetune_trainer.checks.near import NearIndex
from finetune_trainer.checks.row import PARTS, Batch, content_key
from finetune_trainer.checks.row import Row as CheckedRow
from finetune_trainer.fixes.steps import Row, rows_say, was


class DropNearDuplicates:
    """A step that must `look` at all rows, then `settle`, before it is called with the same rows again. Keeps about 60 bytes a row."""

    def __init__(self) -> None:
        self.touched = 0
        self._index = NearIndex()
        self._parts: list[np.ndarray] = []
        self._contents: list[np.ndarray] = []
        self._number = 0
        self._dropped = np.zeros(0, dtype=bool)

    def look(self, part: str, rows: Sequence[Row]) -> None:
        """The next rows of a part of the data (train, validation or test)."""
        self._index.see(Batch([CheckedRow(0, part, 0, row.line, row.example) for row in rows]))
        self._parts.append(np.full(len(rows), PARTS.index(part), dtype=np.uint8))
        self._contents.append(np.array([content_key(row.example) for row in rows], dtype=np.uint64))

    def settle(self) -> None:
        """All rows were looked at. Exact copies are the affair of DropDuplicates."""
        if not self._parts:
            return
        parts, contents = np.concatenate(self._parts), np.concatenate(self._contents)
        later, earlier = self._index.pairs(parts)
        self._dropped = np.zeros(len(parts), dtype=bool)
        self._dropped[later[contents[later] != contents[earlier]]] = True
        self._parts, self._contents, self._index = [], [], NearIndex()

    def __call__(self, part: str, rows: Sequence[Row]) -> list[Row]:
        dropped = self._dropped[self._number : self._number + len(rows)]
        self._number += len(rows)
        self.touched += int(dropped.sum())
        return [row for row, drop in zip(rows, dropped, strict=True) if not drop]

    def detail(self) -> str:
        return f"{rows_say(self.touched, 'is', 'are')} almost the same as an earlier one, and {was(self.touched)} left out."
