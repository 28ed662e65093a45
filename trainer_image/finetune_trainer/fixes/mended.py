"""Mended files: JSON Lines, and beside each what its rows were in the original, so that messages name the line that people know.

NAME.fixed.jsonl            the rows
NAME.fixed.lines.i64        of each row its line in the original, little-endian
NAME.fixed.unusable.jsonl   rows of the original that cannot be used and are not in the mended file: line, code and reason
NAME.fixed.manifest.json    digests of both files, the fixes and their counts; written last
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from finetune_trainer import sealed
from finetune_trainer.data import readers
from finetune_trainer.data.readers import RawRow

LINES, UNUSABLE, MANIFEST = ".lines.i64", ".unusable.jsonl", ".manifest.json"
_LINE = np.dtype("<i8")
_BUFFERED_LINES = 1 << 14


def beside(path: Path, suffix: str) -> Path:
    """What lies beside a mended file."""
    return path.with_name(path.name.removesuffix(".jsonl") + suffix)


def remove(path: Path) -> None:
    """A mended file that is as its original, and what lies beside it."""
    for each in (path, beside(path, LINES), beside(path, UNUSABLE), beside(path, MANIFEST)):
        each.unlink(missing_ok=True)


class Writer:
    """Writes a mended file and its lines under temporary names; `close` syncs and renames them. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = self.unusable = self.bytes = 0
        self.first_unusable: tuple[int, str] | None = None
        self._paths = [path, beside(path, LINES), beside(path, UNUSABLE)]
        self._temporary = [each.with_name(f".{each.name}.tmp-{os.getpid()}") for each in self._paths]
        self._file, self._lines_file, self._unusable_file = (each.open("wb") for each in self._temporary)
        self._lines: list[int] = []
        self._digest = hashlib.sha256()

    def write(self, line: int, value: dict[str, Any]) -> None:
        """`line` is the row's in the original."""
        text = encoded(value) + b"\n"
        self._file.write(text)
        self._digest.update(text)
        self.bytes += len(text)
        self.rows += 1
        self._lines.append(line)
        if len(self._lines) >= _BUFFERED_LINES:
            self._flush()

    def leave_out(self, line: int, code: str | None, reason: str) -> None:
        """A row that cannot be used."""
        self.unusable += 1
        self.first_unusable = self.first_unusable or (line, reason)
        self._unusable_file.write(orjson.dumps({"line": line, "code": code, "reason": reason}) + b"\n")

    @property
    def digest(self) -> str:
        """sha256 (hex) of the mended file."""
        return self._digest.hexdigest()

    def keep(self) -> None:
        """Sync and rename what was written."""
        self._flush()
        for file, temporary, path in zip(
            (self._file, self._lines_file, self._unusable_file), self._temporary, self._paths, strict=True
        ):
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
        sealed.sync(self.path.parent)

    def _flush(self) -> None:
        self._lines_file.write(np.array(self._lines, dtype=_LINE).tobytes())
        self._lines = []

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        for file, temporary in zip((self._file, self._lines_file, self._unusable_file), self._temporary, strict=True):
            file.close()
            temporary.unlink(missing_ok=True)


def encoded(value: dict[str, Any]) -> bytes:
    """A row as one line of JSON. Whatever a table's file holds besides is written as text: dates, decimals, bytes."""
    try:
        return orjson.dumps(value, default=_text)
    except TypeError:  # integers beyond 64 bits, halves of surrogate pairs
        return json.dumps(value, separators=(",", ":"), default=_text).encode()


def _text(value: Any) -> str:
    return value.decode("utf-8", errors="backslashreplace") if isinstance(value, bytes) else str(value)


def read_rows(path: Path, consumed: Callable[[int], None] | None = None) -> Iterator[RawRow]:
    """As `readers.read_rows`; the rows of a mended file have the original's lines, and what could not be used stands among them.

    Byte offsets are those in the mended file.
    """
    lines_path = beside(path, LINES)
    if not path.name.endswith(".jsonl") or not lines_path.is_file():
        yield from readers.read_rows(path, consumed)
        return
    lines = np.fromfile(lines_path, dtype=_LINE)
    left_out = _unusable(beside(path, UNUSABLE))
    waiting = next(left_out, None)
    rows = readers.read_rows(path, consumed) if len(lines) else iter(())
    for line, row in zip(lines.tolist(), rows, strict=True):
        while waiting is not None and waiting.line < line:
            yield waiting
            waiting = next(left_out, None)
        yield row._replace(line=line)
    while waiting is not None:
        yield waiting
        waiting = next(left_out, None)


def _unusable(path: Path) -> Iterator[RawRow]:
    with path.open("rb") as file:
        for text in file:
            row = orjson.loads(text)
            yield RawRow(row["line"], -1, 0, None, row["reason"], row["code"])
