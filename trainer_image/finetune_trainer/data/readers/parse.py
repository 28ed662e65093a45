"""One JSON text to its value, or to what is wrong with it.

orjson parses; what it refuses, and what may hold a key twice (which it does not tell), the standard library reads again
to say where.
"""

from __future__ import annotations

import json
import re
from typing import Any

import orjson
from finetune_api.checks import CheckCode

from finetune_trainer.data.readers.content import BOM
from finetune_trainer.data.readers.row import RawRow

_SPACED_KEY = re.compile(rb'"\s+:')
_DEPTH = "is not usable JSON: nested too deeply"

Parsed = tuple[Any, str | None, CheckCode | None, str | None]
"""Value, fault, code and remedy: either the value, or the others. The remedy may be absent, as in RawRow."""


class _Fault(ValueError):
    """Of JSON that is parsed well enough, but cannot be taken as it is: what is wrong, and what to do."""


def parse(text: bytes) -> Parsed:
    """Of valid JSON without a key that stands twice in one object, its value."""
    try:
        value = orjson.loads(text)
        # A key ends with a quote and a colon. So does text with an escaped quote before a colon: then they are counted exactly.
        if text.count(b'":') == _keys(value) and not _SPACED_KEY.search(text):
            return value, None, None, None
    except (orjson.JSONDecodeError, RecursionError):
        pass
    return explained(text)


def row_of(text: bytes, line: int, offset: int, length: int) -> RawRow:
    """The row that a JSON text is."""
    value, fault, code, remedy = parse(text)
    if fault is None and type(value) is not dict:
        fault, code = f"is {kind_of_value(value)}, not an object with fields", "InvalidJson"
    return RawRow(line, offset, length, value if fault is None else None, fault, code, remedy)


def explained(text: bytes) -> Parsed:
    """As `parse`, slowly, and with the place and the reason of what is wrong."""
    if b"\0" in text:
        return None, "holds NUL bytes: is this a binary file?", "InvalidEncoding", None
    try:
        decoded = text.removeprefix(BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        fault = f"is not UTF-8 (byte 0x{error.object[error.start]:02x} at {error.start + 1}); save the file as UTF-8"
        return None, fault, "InvalidEncoding", None
    try:
        value = json.loads(decoded, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)
        return value, None, None, None
    except json.JSONDecodeError as error:
        said = f"{error.msg[:1].lower()}{error.msg[1:].removesuffix(' at')} at character {error.pos + 1}"
        if decoded.lstrip().startswith("{'"):
            said += " (single quotes are Python's: write rows with json.dumps)"
        return None, f"is not JSON: {said}", "InvalidJson", None
    except RecursionError:
        return None, _DEPTH, "InvalidJson", "flatten it"
    except _Fault as error:
        return None, error.args[0], "InvalidJson", error.args[1]
    except ValueError as error:  # numbers of thousands of digits
        return None, f"is not usable JSON: {str(error).split(';')[0]}", "InvalidJson", "write the number as a string"


def kind_of_value(value: Any) -> str:
    """What a value is, for people."""
    if value is None:
        return "null"
    return {bool: "true or false", int: "a number", float: "a number", str: "a string", list: "a list"}[type(value)]


def _keys(value: Any) -> int:
    """Keys of all objects in a value. Raises RecursionError where it is nested very deeply."""
    if type(value) is dict:
        count, inside = len(value), value.values()
    elif type(value) is list:
        count, inside = 0, value  # type: ignore[assignment]
    else:
        return 0
    for each in inside:
        if type(each) is dict or type(each) is list:
            count += _keys(each)
    return count


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise _Fault(f"has the key {shown(twice)} twice in one object", "keep the one that counts")
    return made


def _constant(name: str) -> Any:
    raise _Fault(f"holds {name}, which JSON does not know", "write null, or leave the field out")


def _float(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise _Fault(f"holds {digits[:20]}, a number too large to be read", "write it as a string")
    return value


def shown(text: str) -> str:
    """A name as JSON writes it, shortened."""
    text = text if len(text) <= 40 else text[:39] + "…"
    written = json.dumps(text, ensure_ascii=False)
    return written if written.isprintable() else json.dumps(text)


def printable(error: BaseException, most: int) -> str:
    """What an error of others says, in one line that is fit to be shown."""
    said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return "".join(letter if letter.isprintable() else "?" for letter in said[:most])
