"""One JSON array of rows, or an object that holds one, read element by element without holding it in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from finetune_trainer.data.readers.content import BLOCK_BYTES, Content
from finetune_trainer.data.readers.parse import row_of, shown
from finetune_trainer.data.readers.row import MAX_ROW_BYTES, RawRow, Unreadable, too_large

WRAPPERS = ("data", "rows", "examples", "instances", "records", "train")
"""Names under which an object may hold its list of rows."""

_SPACE = b" \t\r\n"
# A string, or one of the characters that make structure. Possessive, so that a long string costs no stack.
_STRUCTURE = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["{}\[\],]', re.DOTALL)
_BEGIN = re.compile(rb"[ \t\r\n]*")
_VALUE = re.compile(rb"\s*:\s*\[\s*[{\]]")
_QUOTE, _COMMA, _BRACE, _OPEN, _CLOSE = 0x22, 0x2C, 0x7D, b"{[", b"}]"
_LARGEST_TAIL = 16 * 1024 * 1024


def wrapped_at(head: bytes) -> tuple[int, str] | None:
    """Where the list of rows begins in a file that is an object with one, after its bracket, and its name. None: it is no such file."""
    depth = 0
    for match in _STRUCTURE.finditer(head):
        token = head[match.start()]
        if token in _OPEN:
            depth += 1
        elif token in _CLOSE:
            depth -= 1
            if depth == 0:
                return None
        elif token == _QUOTE and depth == 1:
            name = match.group()[1:-1].decode("utf-8", "replace")
            if name in WRAPPERS and (found := _VALUE.match(head, match.end())):
                return head.index(b"[", match.end(), found.end()) + 1, name
    return None


def read_array(content: Content, begin: int, wrapper: str | None) -> Iterator[RawRow]:
    """Rows of an array whose first element begins at byte `begin`, after its bracket. `wrapper`: the field of an object that it is.

    Raises Unreadable when its brackets do not close, since rows cannot be told apart then.
    """
    array = _Array(content, begin)
    yield from array.rows()
    array.refuse_what_follows(wrapper)


class _Array:
    def __init__(self, content: Content, begin: int) -> None:
        self._content = content
        self._buffer = content.read(begin + BLOCK_BYTES)
        self._base = 0
        """Offset of the buffer in the file."""
        self._line_end = b"\n" if b"\n" in content.head or b"\r" not in content.head else b"\r"
        self._line, self._counted = 1, 0
        self._at = begin
        """How far the buffer is read; in the end right after the array's own bracket."""

    def rows(self) -> Iterator[RawRow]:
        start = scanned = self._at
        depth, after_comma, in_string = 0, False, False
        large: tuple[int, int] | None = None  # line and offset of an element that is dropped as it is read
        while True:
            buffer = self._buffer
            # Within a string that is dropped, the next quote is all that counts.
            in_string = large is not None and in_string and buffer.find(b'"', 1) < 0
            for match in () if in_string else _STRUCTURE.finditer(buffer, scanned):
                at = match.start()
                token = buffer[at]
                if token == _QUOTE:
                    if match.end() - at == 1:  # not closed within what was read so far
                        scanned, in_string = at, True
                        break
                elif token in _OPEN:
                    depth += 1
                elif depth:
                    depth -= token in _CLOSE
                else:
                    if large:
                        yield too_large(*large, self._base + at - large[1])
                    elif row := self._element(start, at):
                        yield row
                    elif token == _COMMA or after_comma:
                        raise Unreadable("a value is missing next to a comma", line=self._line_at(at))
                    if token == _BRACE:
                        raise Unreadable("a } has no {", line=self._line_at(at))
                    start, after_comma, large = at + 1, True, None
                    if token != _COMMA:
                        self._at = start
                        return
            if not in_string:
                scanned = len(buffer)
            if large or len(buffer) - start > MAX_ROW_BYTES:
                large = large or self._place_of(start)
                start = scanned = self._drop(in_string)
            self._more(start, scanned, in_string)
            start, scanned = 0, scanned - start

    def _element(self, start: int, end: int) -> RawRow | None:
        text = self._buffer[start:end]
        stripped = text.lstrip(_SPACE)
        start += len(text) - len(stripped)
        stripped = stripped.rstrip(_SPACE)
        if not stripped:
            return None
        line, offset = self._line_at(start), self._base + start
        if len(stripped) > MAX_ROW_BYTES:
            return too_large(line, offset, len(stripped))
        return row_of(stripped, line, offset, len(stripped))

    def _place_of(self, start: int) -> tuple[int, int]:
        """Line and offset of an element that begins at `start`, or behind the white space there."""
        begins = _BEGIN.match(self._buffer, start).end()  # type: ignore[union-attr]
        return self._line_at(begins), self._base + begins

    def _more(self, start: int, scanned: int, in_string: bool) -> None:
        """Read on, and forget what lies before `start`. As much again as is kept, so that a long string is not searched too often."""
        kept = self._buffer[start:]
        more = self._content.read(max(BLOCK_BYTES, len(kept)))
        if not more:
            what = "a string is not closed" if in_string else "the array's closing ] is missing"
            raise Unreadable(f"{what}: the file was probably cut", "copy the file again", line=self._line_at(scanned))
        self._line_at(start)
        self._counted -= start
        self._base += start
        self._buffer = kept + more

    def _drop(self, in_string: bool) -> int:
        """Forget the whole buffer, but for the quote of a string that is still open. Gives where to go on: at its begin."""
        buffer = self._buffer
        self._line_at(len(buffer))
        escapes = len(buffer) - len(buffer.rstrip(b"\\"))
        self._buffer = b'"' + b"\\" * (escapes % 2) if in_string else b""
        self._counted = len(self._buffer)
        self._base += len(buffer) - len(self._buffer)
        return 0

    def refuse_what_follows(self, wrapper: str | None) -> None:
        """Raises Unreadable when there is more than the array, or than the object around it."""
        line = self._line_at(self._at)
        tail = self._buffer[self._at :]
        if wrapper is None:
            while not tail or tail.isspace():
                if not (tail := self._content.read()):
                    return
            raise Unreadable("something follows the array's closing ]", line=line)
        while len(tail) <= _LARGEST_TAIL and (more := self._content.read()):
            tail += more
        try:
            others = json.loads(b'{"":0' + tail) if len(tail) <= _LARGEST_TAIL else None
        except (ValueError, RecursionError):
            others = None
        if not isinstance(others, dict):
            raise Unreadable(f"what follows the list {shown(wrapper)} is not the end of one object", line=line)
        if second := next((name for name in WRAPPERS if isinstance(others.get(name), list)), None):
            raise Unreadable(
                f"holds two lists, {shown(wrapper)} and {shown(second)}: which of them are the rows?",
                "write the rows alone, as JSON Lines or as one array",
                line=line,
            )

    def _line_at(self, offset: int) -> int:
        """The line of a place in the buffer, not before the last one that was asked for."""
        if offset > self._counted:
            self._line += self._buffer.count(self._line_end, self._counted, offset)
            self._counted = offset
        return self._line
