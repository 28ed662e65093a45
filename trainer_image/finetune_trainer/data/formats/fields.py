"""Single fields of a row: a text, a label, or a list that a table could only hold as JSON text."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import orjson

from finetune_trainer.checks import masking
from finetune_trainer.data.formats.example import InvalidRow, Label

_SHOWN = 40
"""Characters of a value that are shown."""
_TEXTS = ("text", "input_text", "output_text", "reasoning_text", "summary_text")
"""What OpenAI's APIs call parts that are texts."""
_SEARCHED = 4096
"""Characters that are searched for what must be masked: more than the longest key."""


def text(value: Any, where: str, *, may_be_empty: bool = False, parts: bool = False) -> str:
    """A text as it stands; with `parts`, a list of texts (as OpenAI writes what a turn says) is joined. Raises InvalidRow."""
    if type(value) is not str:
        value = _joined(value, where, parts)
    if not may_be_empty and not value.strip():
        raise InvalidRow(f"{where} is empty", "EmptyField")
    if "\0" in value:
        raise InvalidRow(f"{where} holds a NUL character", "InvalidEncoding", "remove it")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidRow(
                f"{where} holds half of a surrogate pair at character {error.start + 1}",
                "InvalidEncoding",
                "write the whole character, or remove it",
            ) from None
    return value


def _joined(value: Any, where: str, may_have_parts: bool) -> str:
    if value is None:
        raise InvalidRow(f"{where} is null", "EmptyField")
    if not (may_have_parts and isinstance(value, list)):
        raise InvalidRow(f"{where} is {shown(value)}, not a text", "WrongType", "write it as a string")
    parts = []
    for number, part in enumerate(value):
        if isinstance(part, str):
            parts.append(part)
        elif isinstance(part, dict) and isinstance(part.get("text"), str) and part.get("type", "text") in _TEXTS:
            parts.append(part["text"])
        else:
            kind = part.get("type") if isinstance(part, dict) else part
            raise InvalidRow(
                f"{where}[{number}] is no text but {shown(kind)}",
                "WrongType",
                "only text can be trained on, so leave the row out",
            )
    return "".join(parts)


def label(value: Any, where: str) -> Label:
    """Raises InvalidRow."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        if value < 0:
            raise InvalidRow(
                f"{where} is {value}, and numbers of labels begin at 0",
                "WrongType",
                "leave the row out if the number marks rows without a label",
            )
        return value
    if isinstance(value, str):
        return text(value, where)
    if value is None:
        raise InvalidRow(f"{where} is null", "EmptyField")
    remedy = "write a text, a whole number, or true or false"
    if isinstance(value, float):
        scores = "leave scores out, which a classifier cannot learn, or divide them into classes"
        remedy = f"write {int(value)}" if value.is_integer() else scores
    raise InvalidRow(f"{where} is {shown(value)}, not the name or number of a class", "WrongType", remedy)


def structured(value: Any, where: str) -> Any:
    """A list or object, also where it is written as JSON text, as tables have to. Raises InvalidRow when that is no JSON."""
    return from_json(value, where) if type(value) is str and value.lstrip()[:1] in ("[", "{") else value


def from_json(value: str, where: str) -> Any:
    """Raises InvalidRow."""
    try:
        return orjson.loads(value)
    except (orjson.JSONDecodeError, ValueError):
        raise InvalidRow(f"{where} is a text that is not JSON", "WrongType", "write it with json.dumps") from None


def shown(value: Any) -> str:
    """A value for people: as JSON, with personal data and secrets masked, shortened."""
    if isinstance(value, str):
        value = value[:_SEARCHED]
    written = json.dumps(value, ensure_ascii=False, default=lambda other: f"a {type(other).__name__}")
    if not written.isprintable():
        written = json.dumps(value, default=lambda other: f"a {type(other).__name__}")
    written = written[:_SEARCHED]
    written = masking.written(written, masking.covered(written))  # first: what is cut could not be told any more
    return written if len(written) <= _SHOWN else written[: _SHOWN - 1] + "…"


def called(name: Any) -> str:
    """The name of a field for people: as it stands where that is fit to be shown."""
    fit = isinstance(name, str) and name.isprintable() and len(name) <= _SHOWN and not masking.covered(name)
    return name if fit else shown(name)


def listed(names: Iterable[Any]) -> str:
    """Names of fields for people, the first eight."""
    return ", ".join(sorted(map(called, names))[:8])
