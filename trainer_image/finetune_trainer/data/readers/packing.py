"""Compressed data, unpacked in a stream and in bounded memory: gzip, bzip2, xz and zstd, several members in one file too."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import BinaryIO, Protocol

from finetune_api.data import PACKINGS

from finetune_trainer.data.readers.row import Unreadable

BOMB_RATIO = 250
BOMB_BYTES = 256 * 1024 * 1024
LARGEST_BYTES = 1 << 40
"""What unpacks to more than BOMB_RATIO times its size is refused from BOMB_BYTES on, and anything from LARGEST_BYTES on.
Text rarely gives more than 20, gzip cannot give more than 1032, and the others give 10,000 and more."""

_PIECE = 2048
"""Bytes that are fed at once: zstd can make 64 MiB of them, which is the most that one call brings into memory."""
_BLOCK = 1 << 18
_MEMORY = 256 * 1024 * 1024

MAGIC = ((b"\x1f\x8b", "gz"), (b"BZh", "bz2"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zst"))


class _Decompressor(Protocol):
    needs_input: bool
    eof: bool
    unused_data: bytes

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Whole:
    """A decompressor that gives at once all that a piece unpacks to; pieces are small."""

    needs_input = True

    def __init__(self, inner: object) -> None:
        self._inner = inner

    def decompress(self, data: bytes, _: int) -> bytes:
        return self._inner.decompress(data)  # type: ignore[attr-defined]

    @property
    def eof(self) -> bool:
        return self._inner.eof  # type: ignore[attr-defined]

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data  # type: ignore[attr-defined]


def _zstd() -> _Decompressor:
    from zstandard import ZstdDecompressor  # only for files that need it

    return _Whole(ZstdDecompressor(max_window_size=_MEMORY // 2).decompressobj())  # type: ignore[return-value]


_MAKERS: dict[str, Callable[[], _Decompressor]] = {
    "gz": lambda: _Whole(zlib.decompressobj(31)),  # type: ignore[dict-item,return-value]
    "bz2": bz2.BZ2Decompressor,  # type: ignore[dict-item]
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY),  # type: ignore[dict-item,return-value]
    "zst": _zstd,
}


def packing_of(start: bytes) -> str | None:
    """How a file that begins with these bytes is compressed: gz, bz2, xz, zst or None."""
    return next((name for magic, name in MAGIC if start.startswith(magic)), None)


class Unpacker:
    """Reads a compressed file. Errors are Unreadable: damaged, cut, or a bomb."""

    def __init__(self, file: BinaryIO, packing: str) -> None:
        self._file, self._packing = file, packing
        self._new = _MAKERS[packing]
        self._now = self._new()
        self._fed, self._made = 0, 0
        self._waiting = b""  # input that the next member begins with

    def read(self) -> bytes:
        """Some more of the content; empty at its end."""
        try:
            return self._read()
        except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
            if isinstance(error, Unreadable):
                raise
            raise self._damaged() from error
        except Exception as error:  # zstandard's own, which is not imported for other files
            if type(error).__name__ != "ZstdError":
                raise
            raise self._damaged() from error

    def _damaged(self) -> Unreadable:
        return Unreadable(f"is damaged: its {PACKINGS[self._packing]} data cannot be unpacked", "copy the file again")

    def _read(self) -> bytes:
        while True:
            if self._now.eof and not self._next_member():
                return b""
            piece = self._piece() if self._now.needs_input else b""
            if self._now.needs_input and not piece:
                raise Unreadable(
                    f"ends in the middle of its {PACKINGS[self._packing]} data: the file was probably cut",
                    "copy the file again",
                )
            if made := self._now.decompress(piece, _BLOCK):
                self._made += len(made)
                self._refuse_bomb()
                return made

    def _piece(self) -> bytes:
        if self._waiting:
            piece, self._waiting = self._waiting, b""
            return piece
        piece = self._file.read(_PIECE)
        self._fed += len(piece)
        return piece

    def _next_member(self) -> bool:
        rest = self._now.unused_data
        while not (rest := rest.lstrip(b"\0")):  # members may be padded with zeros
            rest = self._file.read(_PIECE)
            self._fed += len(rest)
            if not rest:
                return False
        self._waiting, self._now = rest, self._new()
        return True

    def _refuse_bomb(self) -> None:
        if self._made >= BOMB_BYTES and self._made > BOMB_RATIO * self._fed:
            raise Unreadable(
                f"unpacks to more than {BOMB_RATIO} times its size ({self._made >> 20} MiB from {self._fed >> 10} KiB so far), as decompression bombs do",
                "if it is none, unpack it and name the unpacked file",
                code="RowTooLarge",
            )
        if self._made > LARGEST_BYTES:
            raise Unreadable(f"unpacks to more than {LARGEST_BYTES >> 30} GiB", "split it", code="RowTooLarge")
