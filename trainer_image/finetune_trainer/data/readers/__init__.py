"""Reads data files row by row, in bounded memory: JSON Lines, JSON arrays, CSV and Parquet, plain or compressed.

What cannot be read is a row too: with its reason and its check's code. Only a file of which rows can no longer be told
apart ends in Unreadable.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from finetune_trainer.data.readers.arrays import read_array, wrapped_at
from finetune_trainer.data.readers.content import Content
from finetune_trainer.data.readers.kinds import SUFFIXES, Split, data_files, kind_of, of_split
from finetune_trainer.data.readers.lines import read_lines
from finetune_trainer.data.readers.parquet import read_parquet
from finetune_trainer.data.readers.row import MAX_ROW_BYTES, RawRow, Unreadable
from finetune_trainer.data.readers.tables import read_table

__all__ = [
    "MAX_ROW_BYTES", "SUFFIXES", "RawRow", "Split", "Unreadable", "data_files", "file_kind", "of_split", "read_rows", "rows_at",
]  # fmt: skip


def read_rows(path: Path, consumed: Callable[[int], None] | None = None) -> Iterator[RawRow]:
    """Rows of a file in order. `consumed(bytes)` is told, now and then, how much more of the file itself was read.

    Raises Unreadable, with the line where there is one, and OSError.
    """
    line = 0
    with Content(path, consumed) as content:
        try:
            for row in _rows(content, path, consumed):
                line = row.line
                yield row
        except Unreadable as error:
            if error.line is None and line:
                error.line = line
            raise


def rows_at(path: Path, lines: Collection[int]) -> Iterator[RawRow]:
    """The rows that begin on these lines, in the file's order: how a row is found again, whatever kind of file it is in.

    The file is read up to the last of them. Raises as `read_rows`.
    """
    left = set(lines)
    for row in read_rows(path) if left else ():
        if row.line in left:
            yield row
            left.discard(row.line)
            if not left:
                return


def file_kind(path: Path) -> str:
    """jsonl, json, csv or parquet, with its packing where it is compressed: `csv.gz`. Raises Unreadable, OSError."""
    with Content(path) as content:
        kind = kind_of(content, path)
        return f"{kind}.{content.packing}" if content.packing else kind


def _rows(content: Content, path: Path, consumed: Callable[[int], None] | None) -> Iterator[RawRow]:
    kind = kind_of(content, path)
    if kind == "parquet":
        return read_parquet(path, content, consumed)
    if kind == "csv":
        return read_table(content)
    if kind == "jsonl":
        return read_lines(content)
    begin, wrapper = wrapped_at(content.head) or (content.head.index(b"[") + 1, None)
    return read_array(content, begin, wrapper)
