"""The ways in which people write examples, each with the one of the five formats that it is, what it is recognised by, and how it is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from finetune_api.data import DataFormat

from finetune_trainer.data.formats import argilla, conversations, labelstudio, pairs
from finetune_trainer.data.formats.example import Example

Row = dict[str, Any]


class Dialect(NamedTuple):
    """`fits` is asked of rows that may be anything; `read` gets rows that fit, and raises InvalidRow."""

    form: DataFormat
    fits: Callable[[Row], bool]
    read: Callable[[Row], Example]
    evidence: Callable[[Row], str]
    """The fields by which a row is of this dialect, for people, and the dialect where it has a name."""


def _has(*names: str) -> Callable[[Row], bool]:
    return lambda row: all(row.get(name) is not None for name in names)


def _says(evidence: str) -> Callable[[Row], str]:
    return lambda row: evidence


def _turned_pair(row: Row) -> bool:
    return conversations.has_turns(row.get("prompt")) and conversations.has_turns(row.get("completion"))


def _pair(row: Row) -> bool:
    return row.get("prompt") is not None and row.get("completion") is not None and not _turned_pair(row)


def _classified(row: Row) -> bool:
    return row.get("text") is not None and ("label" in row or "labels" in row)


def _conversation(row: Row) -> str:
    field = conversations.field_of(row)
    return f"{field} (ShareGPT)" if conversations.is_sharegpt(row) else str(field)


def _label(row: Row) -> str:
    return f"text and {'label' if row.get('label') is not None or 'labels' not in row else 'labels'}"


DIALECTS = (
    Dialect("messages", lambda row: conversations.field_of(row) is not None, conversations.read_conversation, _conversation),
    Dialect("messages", _turned_pair, conversations.read_turned_pair, _says("prompt and completion as lists of turns")),
    Dialect("prompt-completion", _pair, pairs.read_pair, _says("prompt and completion")),
    Dialect("instruction", _has("instruction", "output"), conversations.read_instruction, _says("instruction and output")),
    Dialect("instruction", lambda row: labelstudio.holds(row, labelstudio.TEXTAREA), labelstudio.read_textarea, _says("data and annotations (Label Studio, textarea)")),
    Dialect("instruction", lambda row: argilla.holds(row, argilla.ANSWER), argilla.read_answer, _says("fields and responses (Argilla, answers)")),
    Dialect("classification", _classified, pairs.read_classified, _label),
    Dialect("classification", lambda row: labelstudio.holds(row, labelstudio.CHOICES), labelstudio.read_choices, _says("data and annotations (Label Studio, choices)")),
    Dialect("classification", lambda row: argilla.holds(row, argilla.LABEL), argilla.read_label, _says("fields and responses (Argilla, labels)")),
    Dialect("text", _has("text"), pairs.read_plain, _says("text")),
)  # fmt: skip
