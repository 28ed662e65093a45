"""The content of a file as a stream of bytes, unpacked where it is compressed, and what kind of data its first bytes say it is."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune_api.data import PACKINGS

from finetune_trainer.data.readers.packing import Unpacker, packing_of
from finetune_trainer.data.readers.row import Unreadable

HEAD_BYTES = 65536
BLOCK_BYTES = 1 << 18
BOM = b"\xef\xbb\xbf"

_OTHER_KINDS = (
    # first bytes, what it is, what to do
    (b"PK\x03\x04", "a zip archive (or a spreadsheet)", "unpack it, or save it as CSV"),
    (b"ARROW1", "an Arrow file", "write it as Parquet or JSON Lines"),
    (b"\xff\xff\xff\xff", "an Arrow stream", "write it as Parquet or JSON Lines"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "fetch it with `git lfs pull`"),
    (b"SQLite format 3", "a database", "write its rows as JSON Lines"),
    (b"Obj\x01", "an Avro file", "write it as Parquet or JSON Lines"),
    (b"ORC", "an ORC file", "write it as Parquet or JSON Lines"),
    (b"<!DOCTYPE", "an HTML page, not data", "check whether its address needs a sign-in"),
    (b"<html", "an HTML page, not data", "check whether its address needs a sign-in"),
)
_UTF_16_OR_32 = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")


class Content(io.RawIOBase):
    """Read it as any binary file. `packing` says how it is compressed, `head` are its first bytes (up to HEAD_BYTES).

    `consumed(bytes)` is told how much more of the file itself was read. Raises Unreadable for what is damaged.
    """

    def __init__(self, path: Path, consumed: Callable[[int], None] | None = None) -> None:
        super().__init__()
        self._file = path.open("rb", buffering=0)
        self._consumed = consumed
        try:
            start = self._file.read(16)
            self._file.seek(0)
            self.packing = packing_of(start)
            self._unpacker = Unpacker(_Counted(self._file, self._told), self.packing) if self.packing else None  # type: ignore[arg-type]
            self._rest = b""
            self.head = self._fill(HEAD_BYTES)
            self._rest = self.head + self._rest
            self._refuse_foreign()
        except BaseException:
            self.close()
            raise

    def read(self, size: int = -1) -> bytes:  # type: ignore[override]
        """`size` bytes, or fewer at the end; the next block of any size for -1."""
        return self._fill(BLOCK_BYTES if size < 0 else size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._fill(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()

    def _fill(self, size: int) -> bytes:
        if not self._unpacker and not self._rest:
            data = self._file.read(size)
            self._told(len(data))
            return data
        parts, have = [self._rest], len(self._rest)
        while have < size and (more := self._more(size - have)):
            parts.append(more)
            have += len(more)
        data = b"".join(parts)
        data, self._rest = data[:size], data[size:]
        return data

    def _more(self, size: int) -> bytes:
        if self._unpacker:
            return self._unpacker.read()
        data = self._file.read(size)
        self._told(len(data))
        return data

    def _told(self, count: int) -> None:
        if self._consumed and count:
            self._consumed(count)

    def _refuse_foreign(self) -> None:
        inside = packing_of(self.head)
        if self.packing and inside:
            raise Unreadable(
                f"is compressed twice, by {PACKINGS[self.packing]} and {PACKINGS[inside]}", "unpack it once"
            )
        halves = self.head[0:8:2], self.head[1:8:2]  # Latin text as UTF-16 has a NUL in every other byte
        if self.head.startswith(_UTF_16_OR_32) or any(half and not any(half) for half in halves):
            raise Unreadable("is UTF-16 or UTF-32 text, not UTF-8", "save it as UTF-8", code="InvalidEncoding")
        if self.head[257:262] == b"ustar":
            raise Unreadable("is a tar archive, not data", "unpack it")
        for magic, kind, remedy in _OTHER_KINDS:
            if self.head.startswith(magic):
                raise Unreadable(f"is {kind}, not JSON, CSV or Parquet", remedy)


class _Counted:
    """A file that tells how much of it was read. Reads ahead, since unpacking takes small pieces."""

    def __init__(self, file: Any, told: Callable[[int], None]) -> None:
        self._file = io.BufferedReader(file, BLOCK_BYTES)
        self._told = told
        self._waiting = 0

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._waiting += len(data)
        if self._waiting >= BLOCK_BYTES or not data:
            self._told(self._waiting)
            self._waiting = 0
        return data
