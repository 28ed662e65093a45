"""Parquet: rows by batches, never a whole row group in memory. It has no lines: a row's line is its number, from 1."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from finetune_trainer.data.readers.content import BLOCK_BYTES, Content
from finetune_trainer.data.readers.packing import BOMB_BYTES, BOMB_RATIO
from finetune_trainer.data.readers.parse import printable, shown
from finetune_trainer.data.readers.row import MAX_ROW_BYTES, RawRow, Unreadable, too_large

MAGIC = b"PAR1"
_BATCH_ROWS, _BATCH_BYTES = 256, 16 * 1024 * 1024
_IN_MEMORY = 64 * 1024 * 1024
_LEAST_BYTES = 2
"""Of a row on average in a large file; rows of nothing can be written without any."""
_CONTAINER_ITEMS = 1_000_000
_UNREADABLE = (ValueError, OverflowError, TypeError, NotImplementedError, KeyError)


def read_parquet(path: Path, content: Content, consumed: Callable[[int], None] | None) -> Iterator[RawRow]:
    """Rows of a Parquet file; one that is compressed as a whole is unpacked into a temporary file first. Raises Unreadable."""
    import pyarrow as pa

    number, stored = 0, path.stat().st_size
    with ExitStack() as stack:
        try:
            source: Any = str(path)
            if content.packing:
                source, consumed = stack.enter_context(tempfile.SpooledTemporaryFile(_IN_MEMORY)), None
                while block := content.read():
                    source.write(block)
                stored = source.tell()
            for batch in _batches(source, stored, consumed, stored - len(content.head)):
                for row in _rows(batch, number):
                    number += 1
                    yield row
        except (pa.ArrowException, OSError, *_UNREADABLE) as error:
            if isinstance(error, Unreadable):
                raise
            raise Unreadable(
                f"is no sound Parquet file from row {number + 1} on: {printable(error, 200)}",
                "write or copy the file again",
                line=number + 1,
            ) from error


def _batches(source: Any, stored: int, consumed: Callable[[int], None] | None, told: int) -> Iterator[Any]:
    """`stored`: bytes of the file. `told`: how many of them `consumed` is told in all, group by group."""
    from pyarrow import parquet

    file = parquet.ParquetFile(
        source,
        buffer_size=BLOCK_BYTES,
        pre_buffer=False,
        thrift_string_size_limit=MAX_ROW_BYTES,
        thrift_container_size_limit=_CONTAINER_ITEMS,
    )
    names = file.schema_arrow.names
    if twice := next((name for place, name in enumerate(names) if name in names[:place]), None):
        raise Unreadable(f"has two columns named {shown(twice)}", "give each its own name")
    # Of a column's own metadata pyarrow (26) ends the process where it is damaged: only that of groups is looked at.
    sizes = [file.metadata.row_group(index).total_byte_size for index in range(file.num_row_groups)]
    counts = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
    if sum(sizes) > max(BOMB_BYTES, BOMB_RATIO * stored) or sum(counts) > max(BOMB_BYTES, stored) // _LEAST_BYTES:
        raise Unreadable(
            f"unpacks to more than {BOMB_RATIO} times its size, as decompression bombs do", code="RowTooLarge"
        )
    for index, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        rows = _BATCH_BYTES * count // max(size, 1)
        yield from file.iter_batches(min(max(rows, 1), _BATCH_ROWS), row_groups=[index])
        if consumed:
            consumed(int(told * max(size, 0) / max(sum(sizes), 1)))


def _rows(batch: Any, before: int) -> Iterator[RawRow]:
    """Rows of a batch, which follow `before` others. What Python cannot hold is the fault of the very row."""
    if batch.nbytes <= MAX_ROW_BYTES:
        try:
            values = _values(batch)
        except _UNREADABLE:
            pass
        else:
            for number, value in enumerate(values, before + 1):
                yield RawRow(number, -1, 0, value)
            return
    for place in range(batch.num_rows):
        yield _row(batch.slice(place, 1), before + place + 1)


def _row(one: Any, number: int) -> RawRow:
    if one.nbytes > MAX_ROW_BYTES:
        return too_large(number, -1, 0)
    try:
        return RawRow(number, -1, 0, _values(one)[0])
    except UnicodeDecodeError:
        return RawRow(number, -1, 0, None, "holds text that is not UTF-8", "InvalidEncoding")
    except _UNREADABLE as error:
        return RawRow(number, -1, 0, None, f"holds a value that cannot be read: {printable(error, 100)}", "WrongType")


def _values(batch: Any) -> list[dict[str, Any]]:
    """Rows with all their columns, and with structs less the fields that only others of their kind have."""
    import pyarrow as pa

    rows: list[dict[str, Any]] = _as_text(batch).to_pylist()
    if any(pa.types.is_nested(kind) for kind in batch.schema.types):
        rows = [{name: without_null(value) for name, value in row.items()} for row in rows]
    return rows


def without_null(value: Any) -> Any:
    """Without the fields that are null: Arrow gives each object the fields of all others, as do the files written from it."""
    if isinstance(value, dict):
        return {name: without_null(inner) for name, inner in value.items() if inner is not None}
    return [without_null(inner) for inner in value] if isinstance(value, list) else value


def _as_text(batch: Any) -> Any:
    """With points in time as text: Python cannot hold all of them, and no example is made of them."""
    import pyarrow as pa

    if not any(pa.types.is_temporal(kind) for kind in batch.schema.types):
        return batch
    columns = [column.cast(pa.string()) if pa.types.is_temporal(column.type) else column for column in batch.columns]
    return pa.record_batch(columns, names=batch.schema.names)
