"""Reads JSON Lines and JSON arrays row by row, in bounded memory. What cannot be read is a row too: with its reason."""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune_trainer.data.readers.row import MAX_ROW_BYTES, RawRow, Unreadable

__all__ = ["MAX_ROW_BYTES", "SUFFIXES", "RawRow", "Unreadable", "data_files", "read_rows"]

SUFFIXES = (".jsonl", ".ndjson", ".json")

_SPACE = b" \t\r\n"
_BOM = b"\xef\xbb\xbf"
_OTHER_KINDS = (
    # first bytes, what it is, what to do
    (b"\xff\xfe", "UTF-16 text", "save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "save it as UTF-8"),
    (b"\x1f\x8b", "compressed by gzip", "unpack it"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "unpack it"),
    (b"BZh", "compressed by bzip2", "unpack it"),
    (b"\xfd7zXZ", "compressed by xz", "unpack it"),
    (b"PK\x03\x04", "a zip archive", "unpack it"),
    (
        b"PAR1",
        "a Parquet file",
        "write it as JSON Lines, for example with pandas' to_json(lines=True, orient='records')",
    ),
    (b"ARROW1", "an Arrow file", "write it as JSON Lines"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "fetch it with `git lfs pull`"),
)


def data_files(path: Path) -> list[Path]:
    """The file itself, or the data files of a folder and its subfolders, by name. Raises Unreadable when there is none."""
    if not path.is_dir():
        return [path]
    files = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in SUFFIXES
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not files:
        raise Unreadable(f"holds no {', '.join(SUFFIXES)} file")
    return files


def read_rows(path: Path) -> Iterator[RawRow]:
    """Rows of a JSON Lines file, or of a file that is one JSON array. Blank lines are skipped. Raises Unreadable, OSError."""
    with path.open("rb") as file:
        start = file.read(64)
        for magic, kind, remedy in _OTHER_KINDS:
            if start.startswith(magic):
                raise Unreadable(f"is {kind}, not JSON", remedy)
        skip = len(_BOM) if start.startswith(_BOM) else 0
        first = _first_byte(file, skip)
        if not first:
            raise Unreadable("is empty")
        file.seek(skip)
        if first == b"[":
            yield from _array_rows(file)
        else:
            yield from _lines(file, skip)


def _first_byte(file: Any, skip: int) -> bytes:
    file.seek(skip)
    while block := file.read(65536):
        if rest := block.lstrip(_SPACE):
            return rest[:1]
    return b""


def _lines(file: Any, offset: int) -> Iterator[RawRow]:
    number = 0
    while line := file.readline(MAX_ROW_BYTES + 1):
        number += 1
        start, offset = offset, offset + len(line)
        if len(line) > MAX_ROW_BYTES:
            while line and not line.endswith(b"\n"):
                line = file.readline(1 << 20)
                offset += len(line)
            yield RawRow(
                number, start, offset - start, None, f"is longer than {MAX_ROW_BYTES >> 20} MiB", "RowTooLarge"
            )
            continue
        text = line.strip(_SPACE)
        if not text:
            continue
        row = _row(text, number, start, len(line.rstrip(b"\r\n")))
        if number == 1 and row.fault and _is_one_object(file, start):
            raise Unreadable(
                "is one JSON object over several lines, neither JSON Lines nor an array",
                "write one object a line, or put the objects into [ ]",
            )
        yield row


def _is_one_object(file: Any, start: int) -> bool:
    """Whether a file whose first line is no row is one JSON object as a whole."""
    here = file.tell()
    file.seek(start)
    document = file.read(MAX_ROW_BYTES)
    file.seek(here)
    try:
        return isinstance(json.loads(document), dict)
    except (ValueError, RecursionError):
        return False


# A string, or one of the characters that make structure. Possessive, so that a long string costs no stack.
_STRUCTURE = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["{}\[\],]', re.DOTALL)


def _array_rows(file: Any) -> Iterator[RawRow]:
    """Elements of one JSON array, found by their brackets without holding the array in memory."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        position = data.find(b"[") + 1
        counted, line = 0, 1  # newlines before `counted` are in `line`

        def line_at(offset: int) -> int:
            nonlocal counted, line
            line += data[counted:offset].count(b"\n")
            counted = offset
            return line

        start, depth, after_comma = position, 0, False
        for match in _STRUCTURE.finditer(data, position):
            token = match.group() if match.end() - match.start() == 1 else b'""'
            if token == b'"':
                raise Unreadable(f"line {line_at(match.start())}: a string is not closed, the file was probably cut")
            if token in (b"{", b"["):
                depth += 1
            elif depth and token in (b"}", b"]"):
                depth -= 1
            elif depth == 0 and token in (b",", b"]", b"}"):
                row = _element(data, start, match.start(), line_at)
                if row is not None:
                    yield row
                elif token == b"," or after_comma:
                    raise Unreadable(f"line {line_at(match.start())}: a value is missing beside a comma")
                if token == b"}":
                    raise Unreadable(f"line {line_at(match.start())}: a }} without its {{")
                if token == b"]":
                    if _strip(data, match.end(), len(data))[0] < len(data):
                        raise Unreadable(f"line {line_at(match.end())}: something follows the array's closing ]")
                    return
                start, after_comma = match.end(), True
        raise Unreadable("is an array whose closing ] is missing: the file was probably cut")


def _element(data: mmap.mmap, start: int, end: int, line_at: Any) -> RawRow | None:
    start, end = _strip(data, start, end)
    if start == end:
        return None
    line = line_at(start)
    if end - start > MAX_ROW_BYTES:
        return RawRow(line, start, end - start, None, f"is longer than {MAX_ROW_BYTES >> 20} MiB", "RowTooLarge")
    return _row(data[start:end], line, start, end - start)


def _strip(data: mmap.mmap, start: int, end: int) -> tuple[int, int]:
    while start < end and data[start] in _SPACE:
        start += 1
    while end > start and data[end - 1] in _SPACE:
        end -= 1
    return start, end


def _row(text: bytes, line: int, offset: int, length: int) -> RawRow:
    value, fault = _parse(text)
    if fault is None and not isinstance(value, dict):
        fault = f"is {_kind(value)}, not an object with fields"
    code = None if fault is None else "InvalidEncoding" if "UTF-8" in fault or "NUL" in fault else "InvalidJson"
    return RawRow(line, offset, length, value if fault is None else None, fault, code)


def _parse(text: bytes) -> tuple[Any, str | None]:
    if b"\0" in text:
        return None, "holds NUL bytes: is this a binary file?"
    try:
        return json.loads(text.decode("utf-8")), None
    except UnicodeDecodeError as error:
        return None, f"is not UTF-8 (byte 0x{text[error.start]:02x} at {error.start + 1}); save the file as UTF-8"
    except json.JSONDecodeError as error:
        return None, f"is not JSON: {error.msg[:1].lower()}{error.msg[1:]} at character {error.pos + 1}"
    except RecursionError:
        return None, "is not usable JSON: nested too deeply"
    except ValueError as error:  # numbers of thousands of digits
        return None, f"is not usable JSON: {str(error).split(';')[0]}"


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    return {bool: "true or false", int: "a number", float: "a number", str: "a string", list: "a list"}[type(value)]
