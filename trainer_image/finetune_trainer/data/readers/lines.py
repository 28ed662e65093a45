"""JSON Lines: one object a line. Lines end with LF, CRLF or CR, all three in one file if need be."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from finetune_trainer.data.readers.content import BOM, Content
from finetune_trainer.data.readers.parse import row_of
from finetune_trainer.data.readers.row import MAX_ROW_BYTES, RawRow, Unreadable, too_large

_SPACE = b" \t\r\n"
_END = re.compile(rb"\r\n?|\n")


def read_lines(content: Content) -> Iterator[RawRow]:
    """Rows of JSON Lines. Blank lines are skipped. A line of more than MAX_ROW_BYTES is never held in memory."""
    rows = _Lines(content).rows()
    for row in rows:
        if row.fault:
            _refuse_pretty(content, row)
        yield row
        break
    yield from rows


class _Lines:
    def __init__(self, content: Content) -> None:
        self._content = content
        self._number = 0
        """Lines that were read whole."""
        self._offset = len(BOM) if content.head.startswith(BOM) else 0
        content.read(self._offset)

    def rows(self) -> Iterator[RawRow]:
        parts: list[bytes] = []  # of a line whose end is not read yet
        held = 0
        waiting = b""
        while block := waiting or self._content.read():
            waiting = b""
            if held and parts[-1].endswith(b"\r") and not block.startswith(b"\n"):
                yield from self._whole_lines(b"".join(parts))
                parts, held = [], 0
            end = _last_end(block)
            parts.append(block[:end] if end else block)
            held += len(parts[-1])
            if end:
                yield from self._whole_lines(b"".join(parts))
                parts = [block[end:]]
                held = len(parts[0])
            elif held > MAX_ROW_BYTES:
                skipped, waiting = self._skip()
                self._number += 1
                yield too_large(self._number, self._offset, held + skipped)
                self._offset += held + skipped
                parts, held = [], 0
        if held:
            yield from self._whole_lines(b"".join(parts), cut=True)

    def _whole_lines(self, text: bytes, *, cut: bool = False) -> Iterator[RawRow]:
        """`cut`: the text does not end with a line's end, the file does."""
        if text.isspace():
            self._number += line_ends(text)
            self._offset += len(text)
            return
        large = len(text) > MAX_ROW_BYTES
        number, offset = self._number, self._offset
        for piece in text.split(b"\n"):
            start, offset = offset, offset + len(piece) + 1
            if b"\r" in piece and b"\r" in piece.removesuffix(b"\r"):  # lines that end with a CR alone
                for line in _carriage_returns(piece):
                    number += 1
                    if stripped := line.strip(_SPACE):
                        yield _row(stripped, number, start, len(line), large, False)
                    start += len(line) + 1
                continue
            number += 1
            if stripped := piece.strip(_SPACE):
                yield _row(stripped, number, start, len(piece), large, cut)
        self._number += line_ends(text)
        self._offset += len(text)

    def _skip(self) -> tuple[int, bytes]:
        """Read on to the end of a line: how many bytes that were, and what was read behind them."""
        skipped = 0
        while block := self._content.read():
            ends = [at for at in (block.find(b"\n"), block.find(b"\r")) if at >= 0]
            if not ends:
                skipped += len(block)
                continue
            end = min(ends) + 1
            rest = block[end:] or self._content.read()
            if block[end - 1 : end] == b"\r" and rest.startswith(b"\n"):
                return skipped + end + 1, rest[1:]
            return skipped + end, rest
        return skipped, b""


def _row(text: bytes, line: int, offset: int, length: int, large: bool, cut: bool) -> RawRow:
    if large and len(text) > MAX_ROW_BYTES:
        return too_large(line, offset, length)
    row = row_of(text, line, offset, length)
    if cut and row.code == "InvalidJson":
        return row._replace(fault=f"{row.fault}, where the file ends: was it cut?")
    return row


def _last_end(block: bytes) -> int:
    """Where the last whole line of a block ends; 0 when none does. A CR at the very end may be half of a CRLF."""
    return block.rfind(b"\n") + 1 or block.rfind(b"\r", 0, len(block) - 1) + 1


def line_ends(text: bytes) -> int:
    """How many lines end in a text, by LF, CRLF or CR."""
    if b"\r" not in text:
        return text.count(b"\n")
    return text.count(b"\n") + text.count(b"\r") - text.count(b"\r\n")


def _carriage_returns(piece: bytes) -> list[bytes]:
    """The lines of a stretch between two LFs in which lines end with CR. The CR of a CRLF ends no line of its own."""
    lines = piece.split(b"\r")
    return lines[:-1] if not lines[-1] else lines


def _refuse_pretty(content: Content, row: RawRow) -> None:
    """Raises Unreadable when a file whose first line is no row begins with a JSON object that takes several lines."""
    head = content.head[row.offset :].lstrip(_SPACE)
    if not head.startswith(b"{"):
        return
    first = _END.split(head, maxsplit=1)[0]
    if first.rstrip() != b"{":
        try:
            _, end = json.JSONDecoder().raw_decode(head.decode("utf-8", "ignore"))
        except (ValueError, RecursionError):
            return
        if end <= len(first):
            return
    raise Unreadable(
        "is one JSON object over several lines, neither JSON Lines nor an array",
        "write one object a line (`jq -c .` does), or put the objects into [ ]",
        line=row.line,
    )
