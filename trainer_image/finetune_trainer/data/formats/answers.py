"""What exports of annotation tools have in common: which of a task's fields is the text, and what its annotators agree on."""

from __future__ import annotations

from typing import Any

from finetune_trainer.data.formats.example import InvalidRow
from finetune_trainer.data.formats.fields import called, listed, shown, text

_FIRST = ("text", "prompt", "instruction", "question", "input", "content")
"""Names of which the first is the text where a task has several texts."""


def the_text(fields: dict[str, Any], where: str) -> str:
    """Raises InvalidRow when it cannot be told which it is."""
    texts = [name for name, value in fields.items() if isinstance(value, str) and value.strip()]
    if not texts:
        raise InvalidRow(f"{where} has no text", "EmptyField")
    name = texts[0] if len(texts) == 1 else next((name for name in _FIRST if name in texts), None)
    if name is None:
        raise InvalidRow(
            f"{where} has several texts ({listed(texts)})", "UnknownFormat", "name the one that counts text"
        )
    return text(fields[name], f"{where}.{called(name)}")


def agreed(values: list[Any]) -> Any:
    """The answer that all annotators gave. Raises InvalidRow when they differ: a sample of opinions is no answer."""
    if not values:
        raise InvalidRow("its annotation is empty", "EmptyField")
    if any(value != values[0] for value in values):
        said = " and ".join(shown(value) for value in values[:2])
        raise InvalidRow(f"its annotators do not agree ({said})", "NothingToTrain", "keep one answer")
    return values[0]
