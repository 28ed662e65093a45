"""Reads all rows of a list of data locations: examples to encode, and every row that cannot be used with its reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TextIO

from finetune_api.data import DataFormat

from finetune_trainer import fixes
from finetune_trainer.data import formats
from finetune_trainer.data.formats import Example, InvalidRow
from finetune_trainer.data.readers import RawRow, Unreadable
from finetune_trainer.errors import BadInput
from finetune_trainer.prepare.examine import Examination
from finetune_trainer.prepare.files import DataFile

SHOWN = 20
"""Bad rows that are kept for the result and the log; all of them are in the file."""


class Row(NamedTuple):
    """A usable row: `source` is (file index, line, byte offset, byte length) as shards keep it."""

    example: Example
    source: tuple[int, int, int, int]


@dataclass
class Invalid:
    """Rows that cannot be used. Every one is written to `file` as {"file", "line", "code", "reason"}; the first ones are kept."""

    file: TextIO | None
    files: Sequence[DataFile]
    examination: Examination
    count: int = 0
    first: list[tuple[str, int, str]] = field(default_factory=list)

    def add(self, file: int, line: int, error: InvalidRow, *, was_read: bool = False) -> None:
        """`was_read`: it had been taken for a usable row before."""
        name, reason = self.files[file].name, str(error)
        self.count += 1
        self.examination.invalid(file, line, error, was_read=was_read)
        if len(self.first) < SHOWN:
            self.first.append((name, line, reason))
        if self.file is not None:
            json.dump({"file": name, "line": line, "code": error.code, "reason": reason}, self.file, ensure_ascii=False)
            self.file.write("\n")


class RowReader:
    """Reads one file after another in one format: the one given, or that of the first row that has one."""

    def __init__(self, form: DataFormat | None, invalid: Invalid, advance: Callable[[int, int], None]) -> None:
        """`advance(rows, bytes)` is told how much more was read, now and then."""
        self.form = form
        self.evidence: str | None = None
        """Where the format was recognised: the fields by which it was."""
        self.rows = 0
        self._invalid = invalid
        self._examination = invalid.examination
        self._advance = advance

    def batches(self, index: int, file: DataFile, size: int) -> Iterator[list[Row]]:
        """Usable rows of a file in lists of at most `size`. Raises BadInput when the file as a whole cannot be read."""
        batch: list[Row] = []
        told, waiting = self.rows, 0

        def consumed(count: int) -> None:
            nonlocal waiting
            waiting += count

        try:
            for raw in fixes.read_rows(file.path, consumed):
                self.rows += 1
                example = self._example(index, raw)
                if example is not None:
                    batch.append(Row(example, (index, raw.line, raw.offset, raw.length)))
                if len(batch) == size or self.rows - told >= size:
                    self._advance(self.rows - told, waiting)
                    told, waiting = self.rows, 0
                    yield batch
                    batch = []
        except Unreadable as error:
            raise error.refusal(file.name) from error
        except OSError as error:
            raise BadInput(f"{file.name} cannot be read: {error.strerror}", code="InvalidData") from error
        self._advance(self.rows - told, waiting)
        if batch:
            yield batch

    def _example(self, file: int, raw: RawRow) -> Example | None:
        try:
            value = formats.value_of(raw)
            if self.form is None:
                self.form = formats.detect(value)
                self.evidence = formats.evidence(value, self.form)
            example = formats.read(value, self.form)
        except InvalidRow as error:
            self._invalid.add(file, raw.line, error)
            return None
        self._examination.row(file, raw.line, example, self.form)
        return example
