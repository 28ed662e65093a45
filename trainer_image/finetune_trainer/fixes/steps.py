"""The fixes that look at rows one after another, in batches."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from finetune_api.checks import Fix
from finetune_api.data import DataFormat

from finetune_trainer.checks.row import content_key
from finetune_trainer.checks.wording import of_kinds
from finetune_trainer.data import formats
from finetune_trainer.data.formats import Example, InvalidRow
from finetune_trainer.fixes import redact
from finetune_trainer.fixes.keyset import KeySet


@dataclass(slots=True)
class Row:
    """A usable row on its way: as it was read, and what it says."""

    line: int
    value: dict[str, Any]
    example: Example


class Step(Protocol):
    """`touched`: rows that it changed or dropped so far."""

    touched: int

    def __call__(self, part: str, rows: Sequence[Row]) -> list[Row]:
        """Rows that are kept, in order, of the next ones of a part of the data (train, validation or test)."""
        ...

    def detail(self) -> str:
        """One sentence on what was done."""
        ...


class DropDuplicates:
    """Leaves out rows that say the same as an earlier one of their part, with the same label. Keeps 8 bytes a row."""

    def __init__(self, form: DataFormat) -> None:
        self.touched = 0
        self._seen: dict[str, KeySet] = {}

    def __call__(self, part: str, rows: Sequence[Row]) -> list[Row]:
        keys = np.array([content_key(row.example) for row in rows], dtype=np.uint64)
        fresh = self._seen.setdefault(part, KeySet()).add(keys)
        self.touched += int((~fresh).sum())
        return [row for row, new in zip(rows, fresh, strict=True) if new]

    def detail(self) -> str:
        return f"{rows_say(self.touched, 'is', 'are')} the same as an earlier one, and {was(self.touched)} left out."


class Redact:
    """Replaces personal data, or secrets, by their kind."""

    def __init__(self, form: DataFormat, fix: str) -> None:
        self.touched = 0
        self._form = form
        self._find, self._kinds = redact.FINDERS[fix]
        self._counts: Counter[str] = Counter()

    def __call__(self, part: str, rows: Sequence[Row]) -> list[Row]:
        for row in rows:
            mended = redact.redacted(row.value, self._find, self._counts)
            if mended is not None:
                self.touched += 1
                row.value = mended
                with contextlib.suppress(InvalidRow):  # then whoever reads the mended file says why, and where
                    row.example = formats.read(mended, self._form)
        return list(rows)

    def detail(self) -> str:
        found = of_kinds(self._counts, self._kinds)
        return (
            f"{rows_say(self.touched, 'was', 'were')} redacted: {found}." if found else "Nothing was found to redact."
        )


STEPS: dict[Fix, Callable[[DataFormat], Step]] = {
    "DropDuplicates": DropDuplicates,
    "RedactPii": lambda form: Redact(form, "RedactPii"),
    "RedactSecrets": lambda form: Redact(form, "RedactSecrets"),
}


def rows_say(count: int, one: str, several: str) -> str:
    return f"{count:,} row{'s' * (count != 1)} {one if count == 1 else several}"


def was(count: int) -> str:
    return "was" if count == 1 else "were"
