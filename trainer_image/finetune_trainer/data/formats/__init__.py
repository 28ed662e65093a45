"""The five forms in which people write examples, and what is wrong with a row that is in none of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from finetune_api.data import DataFormat

from finetune_trainer.data.chat import Message
from finetune_trainer.data.formats.example import Example, InvalidRow, Label

__all__ = ["Example", "InvalidRow", "Label", "detect", "evidence", "read"]


@dataclass(frozen=True, slots=True)
class _Form:
    needs: tuple[str, ...]
    """Fields that a row of this form has; the first one is what it is recognised by. `a or b` needs one of two."""
    read: Callable[[dict[str, Any]], Example]


def detect(row: dict[str, Any]) -> DataFormat:
    """The form whose fields the row has. Raises InvalidRow when it has none's, or only half of one's."""
    for name, form in FORMS.items():
        if not _missing(row, form):
            return name
    for name, form in FORMS.items():
        if form.needs[0] in row:
            missing = _missing(row, form)[0]
            raise InvalidRow(
                f"has a field {form.needs[0]!r} but no {missing!r}, which format {name} needs", "MissingField"
            )
    fields = ", ".join(sorted(map(str, row))[:8]) or "no fields at all"
    raise InvalidRow(f"is in no known format (it has {fields}): rename the fields to {_KNOWN}", "UnknownFormat")


def read(row: dict[str, Any], form: DataFormat) -> Example:
    """Raises InvalidRow with one clause that says what is wrong."""
    if missing := _missing(row, FORMS[form]):
        try:
            other = detect(row)
        except InvalidRow:
            other = None
        seems = f": it looks like {other}; keep each format in its own job, or convert these rows" if other else ""
        raise InvalidRow(
            f"has no field {missing[0]!r}, which format {form} needs{seems}",
            "MixedFormats" if other else "MissingField",
        )
    return FORMS[form].read(row)


def evidence(row: dict[str, Any], form: DataFormat) -> str:
    """The fields by which the row is of that form, for people: `text and label`."""
    return " and ".join(next(name for name in needed.split(" or ") if name in row) for needed in FORMS[form].needs)


def _missing(row: dict[str, Any], form: _Form) -> list[str]:
    return [needed for needed in form.needs if not any(name in row for name in needed.split(" or "))]


def _messages(row: dict[str, Any]) -> Example:
    turns = row["messages"]
    if not isinstance(turns, list):
        raise InvalidRow("messages is not a list of turns", "WrongType")
    if not turns:
        raise InvalidRow("messages is empty", "EmptyField")
    messages = tuple(_turn(turn, f"messages[{number}]") for number, turn in enumerate(turns))
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise InvalidRow("messages has no assistant turn, so there is nothing to learn", "NothingToTrain")
    if roles[-1] != "assistant":
        raise InvalidRow(
            f"the last turn is the {roles[-1]}'s: it must be the assistant's, whose answers are learnt",
            "InvalidTurnOrder",
        )
    if roles[0] == "assistant":
        raise InvalidRow(
            "the conversation begins with the assistant: put a system or user turn before it", "InvalidTurnOrder"
        )
    if "system" in roles[1:]:
        raise InvalidRow(
            f"messages[{roles.index('system', 1)}] is a system turn, which can only be the first", "InvalidTurnOrder"
        )
    return Example(messages=messages)


_OTHER_ROLES = {
    "tool": "tool turns are not supported yet: leave them out, or write their content into a user turn",
    "function": "tool turns are not supported yet: leave them out, or write their content into a user turn",
    "developer": "write it as system",
    "human": "write it as user",
    "gpt": "write it as assistant",
    "bot": "write it as assistant",
    "model": "write it as assistant",
}


def _turn(turn: Any, where: str) -> Message:
    if not isinstance(turn, dict):
        raise InvalidRow(f"{where} is not an object with role and content", "WrongType")
    role = turn.get("role")
    if role not in ("system", "user", "assistant"):
        if "role" not in turn:
            hint = "; it has from and value: rename them to role and content" if "from" in turn else ""
            raise InvalidRow(f"{where} has no role{hint}", "InvalidRole")
        hint = _OTHER_ROLES.get(role, "use system, user or assistant") if isinstance(role, str) else "use a string"
        raise InvalidRow(f"{where}.role is {json.dumps(role)[:40]}: {hint}", "InvalidRole")
    if turn.get("tool_calls"):
        raise InvalidRow(f"{where} has tool_calls: tools are not supported yet, leave the row out", "InvalidRole")
    if "content" not in turn:
        raise InvalidRow(f"{where} has no content", "MissingField")
    content = _text(turn["content"], f"{where}.content", may_be_empty=role == "system")
    return {"role": role, "content": content}


def _pair(row: dict[str, Any]) -> Example:
    if isinstance(row["prompt"], list) or isinstance(row["completion"], list):
        raise InvalidRow("prompt or completion is a list of turns: write the row as one messages list", "WrongType")
    return Example(prompt=_text(row["prompt"], "prompt"), completion=_text(row["completion"], "completion"))


def _instruction(row: dict[str, Any]) -> Example:
    question = _text(row["instruction"], "instruction")
    given = row.get("input")
    if given is not None and (given := _text(given, "input", may_be_empty=True)).strip():
        question = f"{question}\n\n{given}"
    answer = _text(row["output"], "output")
    return Example(messages=({"role": "user", "content": question}, {"role": "assistant", "content": answer}))


def _plain(row: dict[str, Any]) -> Example:
    return Example(completion=_text(row["text"], "text"))


def _classified(row: dict[str, Any]) -> Example:
    if "label" in row and "labels" in row:
        raise InvalidRow(
            "has both label and labels: keep label for one label a row, labels for lists of them", "UnknownFormat"
        )
    text = _text(row["text"], "text")
    pair = row.get("text_pair")
    pair = None if pair is None else _text(pair, "text_pair")
    if "label" in row:
        if isinstance(row["label"], list):
            raise InvalidRow("label is a list: name the field labels where rows may have several", "WrongType")
        return Example(text=text, pair=pair, label=_label(row["label"], "label"))
    if not isinstance(row["labels"], list):
        raise InvalidRow("labels is not a list: name the field label where every row has one", "WrongType")
    labels = tuple(_label(value, f"labels[{number}]") for number, value in enumerate(row["labels"]))
    return Example(text=text, pair=pair, label=labels)


def _label(value: Any, where: str) -> Label:
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        if value < 0:
            raise InvalidRow(
                f"{where} is {value}: numbers of labels begin at 0, and less often marks rows without one", "WrongType"
            )
        return value
    if isinstance(value, str):
        return _text(value, where)
    raise InvalidRow(
        f"{where} is {json.dumps(value)[:40]}: a label is a text, a whole number, or true or false", "WrongType"
    )


def _text(value: Any, where: str, *, may_be_empty: bool = False) -> str:
    if isinstance(value, list):
        raise InvalidRow(f"{where} is a list of parts: only text is supported, write it as one string", "WrongType")
    if not isinstance(value, str):
        raise InvalidRow(f"{where} is {json.dumps(value)[:40]}, not a text", "WrongType")
    if not may_be_empty and not value.strip():
        raise InvalidRow(f"{where} is empty", "EmptyField")
    if "\0" in value:
        raise InvalidRow(f"{where} holds a NUL character", "InvalidEncoding")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidRow(
            f"{where} holds half of a surrogate pair at character {error.start + 1}", "InvalidEncoding"
        ) from None
    return value


FORMS: dict[DataFormat, _Form] = {
    "messages": _Form(("messages",), _messages),
    "prompt-completion": _Form(("prompt", "completion"), _pair),
    "instruction": _Form(("instruction", "output"), _instruction),
    "classification": _Form(("text", "label or labels"), _classified),
    "text": _Form(("text",), _plain),
}
_KNOWN = (
    "messages; or prompt and completion; or instruction (with input) and output; or text and label (or labels); or text"
)
