"""CSV and its kin: the first line names the columns, the rows below have text in each. Quoted cells may hold line ends."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from finetune_api.checks import CheckCode

from finetune_trainer.data.readers.content import Content
from finetune_trainer.data.readers.parse import shown
from finetune_trainer.data.readers.row import FIELDS, MAX_ROW_BYTES, RawRow, Unreadable, too_large

_DELIMITERS = (",", "\t", ";", "|")
_QUOTE = "put cells that hold the delimiter, quotes or line ends into quotes"


def names_fields(head: bytes) -> bool:
    """Whether the first line of a text reads like the header of a table of examples."""
    line = _first_line(head)
    return any(FIELDS.intersection(_cells(line, delimiter)) for delimiter in _DELIMITERS)


def delimiter_of(header: str) -> str:
    """What parts the cells: that by which most columns have a name that examples use, then that which gives most columns."""
    cells = {delimiter: _cells(header, delimiter) for delimiter in _DELIMITERS}
    return max(_DELIMITERS, key=lambda delimiter: (len(FIELDS.intersection(cells[delimiter])), len(cells[delimiter])))


def read_table(content: Content) -> Iterator[RawRow]:
    """Rows of a table, each with the line on which it begins. Cells are texts, never numbers. Raises Unreadable."""
    csv.field_size_limit(MAX_ROW_BYTES)
    lines = _Lines(content)
    cells = csv.reader(lines, delimiter=delimiter_of(_first_line(content.head)), strict=True)
    header = _header(cells, lines)
    width = len(header)
    while True:
        begin = lines.begin_record()
        try:
            record = next(cells, None)
        except _TooLong:
            if lines.number > begin:
                raise Unreadable(
                    f"a cell in quotes is not closed within {MAX_ROW_BYTES >> 20} MiB", code="RowTooLarge", line=begin
                ) from None
            lines.skip()
            yield too_large(begin, -1, 0)
            continue
        except csv.Error as error:
            if "end of data" in str(error):
                raise Unreadable(
                    "a cell in quotes is not closed: the file was probably cut, or a quote is missing", line=begin
                ) from None
            yield RawRow(begin, -1, 0, None, f"is no row of a table: {error}", "InvalidJson", _QUOTE)
            continue
        if record is None:
            return
        if not record:
            continue
        if lines.not_utf8:
            yield RawRow(begin, -1, 0, None, "is not UTF-8; save the file as UTF-8", "InvalidEncoding")
        elif len(record) != width:
            yield RawRow(begin, -1, 0, None, *_uneven(len(record), width))
        else:
            yield RawRow(begin, -1, 0, dict(zip(header, record, strict=True)))


class _TooLong(Exception):
    """A record has more than MAX_ROW_BYTES."""


class _Lines:
    """Lines of text for csv, with their ends. Bytes that are not UTF-8 become surrogates, so that cells are told apart all the same."""

    def __init__(self, content: Content) -> None:
        self._text = io.TextIOWrapper(
            io.BufferedReader(content, 1 << 18), encoding="utf-8-sig", errors="surrogateescape", newline=""
        )
        self._read = self._text.readline
        self._left = MAX_ROW_BYTES
        self.number = 0
        """The line that was read last, from 1."""
        self.not_utf8 = False
        """Whether the record holds bytes that are not UTF-8."""

    def begin_record(self) -> int:
        """The line on which the record that is read next begins."""
        self._left, self.not_utf8 = MAX_ROW_BYTES, False
        return self.number + 1

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._read(self._left + 1)
        if not line:
            raise StopIteration
        self._left -= len(line)
        if self._left < 0:
            raise _TooLong
        self.number += 1
        if not line.isascii():
            try:
                line.encode()
            except UnicodeEncodeError:
                self.not_utf8 = True
        return line

    def skip(self) -> None:
        """To the end of a line that is too long."""
        self.number += 1
        while (rest := self._read(1 << 20)) and not rest.endswith(("\n", "\r")):
            pass


def _header(cells: Iterator[list[str]], lines: _Lines) -> list[str]:
    try:
        names = next((record for record in cells if record), [])
    except _TooLong:
        raise Unreadable("the names of its columns are too long", code="RowTooLarge", line=1) from None
    except csv.Error as error:
        raise Unreadable(f"its first line does not name columns: {error}", line=1) from None
    names = [name.strip() for name in names]
    if lines.not_utf8:
        raise Unreadable("is not UTF-8", "save the file as UTF-8", code="InvalidEncoding", line=lines.number)
    if twice := next((name for place, name in enumerate(names) if name in names[:place]), None):
        raise Unreadable(f"two columns are named {shown(twice)}", "give each its own name", line=lines.number)
    return names


def _uneven(count: int, width: int) -> tuple[str, CheckCode, str]:
    has = f"has {count} cell{'s' * (count != 1)} where the first line names {width} column{'s' * (width != 1)}"
    return has, "InvalidJson", _QUOTE


def _first_line(head: bytes) -> str:
    text = head.decode("utf-8-sig", "replace").lstrip()
    return text.splitlines()[0] if text else ""


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return []
