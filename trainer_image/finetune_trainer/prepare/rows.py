"""Reads all rows of a list of data locations: examples to encode, and every row that cannot be used with its reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TextIO

from finetune_api.checks import CheckCode
from finetune_api.contract import RunConfig
from finetune_api.data import DataFormat
from finetune_api.location import Location

from finetune_trainer import source
from finetune_trainer.data import formats
from finetune_trainer.data.formats import Example, InvalidRow
from finetune_trainer.data.readers import RawRow, Unreadable, data_files, read_rows
from finetune_trainer.errors import BadInput

SHOWN = 20
"""Bad rows that are kept for the result and the log; all of them are in the file."""


class DataFile(NamedTuple):
    """`name` is how the user knows it; `part` is train, validation or test."""

    part: str
    name: str
    path: Path


class Row(NamedTuple):
    """A usable row: `source` is (file index, line, byte offset, byte length) as shards keep it."""

    example: Example
    source: tuple[int, int, int, int]


def locate(config: RunConfig) -> list[DataFile]:
    """Every data file of the job, in the order of the spec; hub files are downloaded. Raises BadInput."""
    found = []
    data = config.spec.data
    for part, locations in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        for number, location in enumerate(locations or ()):
            field_name = f"spec.data.{part}[{number}].uri"
            path = source.fetch(location, config, field=field_name, files=source.DATA_FILES, subfolders=True)
            try:
                files = data_files(path)
            except Unreadable as error:
                raise BadInput(
                    f"{field_name}: {location.uri} {error}", code="InvalidData", remedy=error.remedy
                ) from error
            found += [DataFile(part, _name(location, path, file), file) for file in files]
    return found


def _name(location: Location, path: Path, file: Path) -> str:
    return location.uri if file == path else f"{location.uri.rstrip('/')}/{file.relative_to(path).as_posix()}"


@dataclass
class Invalid:
    """Rows that cannot be used. Every one is written to `file` as {"file", "line", "code", "reason"}; the first ones are kept."""

    file: TextIO
    count: int = 0
    first: list[tuple[str, int, str]] = field(default_factory=list)

    def add(self, name: str, line: int, reason: str, code: CheckCode) -> None:
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append((name, line, reason))
        json.dump({"file": name, "line": line, "code": code, "reason": reason}, self.file, ensure_ascii=False)
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
        self._advance = advance

    def batches(self, index: int, file: DataFile, size: int) -> Iterator[list[Row]]:
        """Usable rows of a file in lists of at most `size`. Raises BadInput when the file as a whole cannot be read."""
        batch: list[Row] = []
        told_rows, told_bytes, raw_end = self.rows, 0, 0
        try:
            for raw in read_rows(file.path):
                self.rows += 1
                raw_end = raw.offset + raw.length
                example = self._example(file, raw)
                if example is not None:
                    batch.append(Row(example, (index, raw.line, raw.offset, raw.length)))
                if len(batch) == size or self.rows - told_rows >= size:
                    self._advance(self.rows - told_rows, raw_end - told_bytes)
                    told_rows, told_bytes = self.rows, raw_end
                    yield batch
                    batch = []
        except Unreadable as error:
            where = file.name if error.line is None else f"{file.name}:{error.line}:"
            raise BadInput(f"{where} {error}", code="InvalidData", remedy=error.remedy) from error
        except OSError as error:
            raise BadInput(f"{file.name} cannot be read: {error.strerror}", code="InvalidData") from error
        self._advance(self.rows - told_rows, raw_end - told_bytes)
        if batch:
            yield batch

    def _example(self, file: DataFile, raw: RawRow) -> Example | None:
        try:
            if raw.value is None:
                raise InvalidRow(raw.fault or "cannot be read", raw.code or "InvalidJson")
            if self.form is None:
                self.form = formats.detect(raw.value)
                self.evidence = formats.evidence(raw.value, self.form)
            return formats.read(raw.value, self.form)
        except InvalidRow as error:
            self._invalid.add(file.name, raw.line, str(error), error.code)
            return None


def refuse_if_too_many(invalid: Invalid, rows: int, allowed: float, listing: str) -> None:
    """Raises BadInput (InvalidData) naming the first bad row when more than the `allowed` share of all rows is invalid."""
    if not invalid.count or invalid.count <= allowed * rows:
        return
    name, line, reason = invalid.first[0]
    others = f" ({invalid.count} of {rows} rows cannot be used)" if rows > 1 else ""
    share = f"data.checks.maxInvalidFraction allows {allowed:.2%}" if allowed else "none is allowed"
    raise BadInput(
        f"{name}:{line}: {reason}{others}",
        code="InvalidData",
        remedy=f"correct the rows ({share}); all of them are listed in {listing}"
        + ("" if allowed else "; or set spec.data.checks.maxInvalidFraction to leave them out"),
    )


def first_sentences(invalid: Invalid) -> Sequence[str]:
    return [f"{name}:{line}: {reason}" for name, line, reason in invalid.first]
