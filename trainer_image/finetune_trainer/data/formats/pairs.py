"""Rows without turns: prompt and completion, instructions, plain text, and texts with labels."""

from __future__ import annotations

from typing import Any

from finetune_trainer.data.formats.conversations import has_turns, system_of
from finetune_trainer.data.formats.example import Example, InvalidRow
from finetune_trainer.data.formats.fields import label, shown, structured, text


def read_pair(row: dict[str, Any]) -> Example:
    """Raises InvalidRow."""
    for name, other in (("prompt", "completion"), ("completion", "prompt")):
        if has_turns(row[name]):
            raise InvalidRow(f"{name} is a list of turns", "WrongType", f"write {other} as one too")
    if row.get("history"):
        raise InvalidRow("has a history, and a pair is one prompt", "UnknownFormat", "write the row as messages")
    prompt = text(row["prompt"], "prompt")
    if system := system_of(row):
        prompt = f"{system}\n\n{prompt}"
    return Example(prompt=prompt, completion=text(row["completion"], "completion"))


def answered(question: str, answer: str) -> Example:
    """A question with its answer, which the chat template will write."""
    return Example(messages=({"role": "user", "content": question}, {"role": "assistant", "content": answer}))


def read_plain(row: dict[str, Any]) -> Example:
    """Raises InvalidRow."""
    return Example(completion=text(row["text"], "text"))


def read_classified(row: dict[str, Any]) -> Example:
    """Raises InvalidRow."""
    one, several = row.get("label"), row.get("labels")
    if one is not None and several is not None:
        raise InvalidRow(
            "has both label and labels", "UnknownFormat", "keep label for one label a row, labels for lists of them"
        )
    said = text(row["text"], "text")
    pair = row.get("text_pair")
    pair = None if pair is None or pair == "" else text(pair, "text_pair")
    if several is None:
        if isinstance(one, list):
            raise InvalidRow("label is a list", "WrongType", "name the field labels where rows may have several")
        return Example(text=said, pair=pair, label=label(one, "label" if "label" in row else "labels"))
    several = structured(several, "labels")
    if not isinstance(several, list):
        raise InvalidRow(
            f"labels is {shown(several)}, not a list", "WrongType", "name the field label where every row has one"
        )
    labels = tuple(label(value, f"labels[{number}]") for number, value in enumerate(several))
    return Example(text=said, pair=pair, label=labels)
