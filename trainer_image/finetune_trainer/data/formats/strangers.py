"""Rows that are in no format, and what would bring them into one."""

from __future__ import annotations

from typing import Any

from finetune_api.data import DataFormat

from finetune_trainer.data.formats import argilla, labelstudio
from finetune_trainer.data.formats.example import InvalidRow
from finetune_trainer.data.formats.fields import called, listed

NEEDS: dict[DataFormat, tuple[str, ...]] = {
    "messages": ("messages",),
    "prompt-completion": ("prompt", "completion"),
    "instruction": ("instruction", "output"),
    "classification": ("text", "label"),
    "text": ("text",),
}
"""Fields of a row of each format."""

_KNOWN = (
    "messages; or prompt and completion; or instruction (with input) and output; or text and label (or labels); or text"
)
_ASKS = ("question", "query", "user", "source", "context", "problem", "input")
_ANSWERS = ("answer", "response", "assistant", "target", "solution", "output", "reply")
_TEXTS = ("content", "sentence", "document", "body", "article", "review")


def half(row: dict[str, Any], form: DataFormat | None = None) -> InvalidRow | None:
    """Of a row with one of the fields that a format needs (of `form`, or of any), which one is absent or null."""
    for name, needs in NEEDS.items() if form is None else ((form, NEEDS[form]),):
        absent = [field for field in needs if row.get(field) is None]
        if not absent:
            continue
        if len(absent) == len(needs):
            if null := next((field for field in absent if field in row), None):
                return InvalidRow(f"{null} is null", "EmptyField")
            continue
        if absent[0] in row:
            return InvalidRow(f"{absent[0]} is null", "EmptyField")
        had = next(field for field in needs if field not in absent)
        lacks = "label or labels" if absent[0] == "label" else absent[0]
        return InvalidRow(f"has a field {had!r} but no {lacks!r}, which format {name} needs", "MissingField")
    return None


def stranger(row: dict[str, Any]) -> InvalidRow:
    """Why a row is in no format: of an export what it lacks, of others how its fields might be renamed."""
    if labelstudio.is_export(row):
        return labelstudio.why_not(row)
    if argilla.is_export(row):
        return argilla.why_not(row)
    fields = listed(row) or "no fields at all"
    return InvalidRow(f"is in no known format (it has {fields})", "UnknownFormat", _advice(row))


def _advice(row: dict[str, Any]) -> str:
    names = {str(name).strip().lower(): str(name) for name in row}
    if any(set(needs) <= set(names) and not set(needs) <= set(row) for needs in NEEDS.values()):
        return "write the fields' names in lower case, without spaces"
    ask, answer, text = (next((name for name in known if name in names), None) for known in (_ASKS, _ANSWERS, _TEXTS))
    if ask and answer:
        prompt, completion = NEEDS["instruction" if {"history", "system"} & names.keys() else "prompt-completion"]
        return f"rename {called(names[ask])} to {prompt} and {called(names[answer])} to {completion}"
    if text:
        return f"rename {called(names[text])} to text"
    return f"rename the fields to {_KNOWN}"
