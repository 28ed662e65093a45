"""Argilla's exports: what annotators answered, or where none did what was suggested, is a label or an answer.

Three shapes: records of version 2 (`responses` by question), of version 1 (a list of `responses` by annotator), and
tables (`QUESTION.responses`, `QUESTION.suggestion`).
"""

from __future__ import annotations

import re
from typing import Any

from finetune_trainer.data.formats.answers import agreed, the_text
from finetune_trainer.data.formats.example import Example, InvalidRow
from finetune_trainer.data.formats.fields import label, listed, text
from finetune_trainer.data.formats.pairs import answered

LABEL, ANSWER = "label", "answer"
_LIKE = {
    LABEL: re.compile("label|class|categor|sentiment|intent|topic|tag|rating|quality", re.IGNORECASE),
    ANSWER: re.compile("answer|response|output|completion|correct|rewrit|summar|translation|reply|text", re.IGNORECASE),
}
_SUFFIX = re.compile(r"(.+)\.(responses|suggestion)")
_OWN = frozenset({"id", "_server_id", "status", "external_id", "inserted_at", "updated_at", "metadata", "vectors"})


def is_export(row: dict[str, Any]) -> bool:
    """Whether a row is a record, or a table's row."""
    if isinstance(row.get("fields"), dict):
        return "responses" in row or "suggestions" in row
    return any(_SUFFIX.fullmatch(name) for name in row)


def holds(row: dict[str, Any], kind: str) -> bool:
    """Whether a row is an export with an answer that may be of this kind."""
    return is_export(row) and bool(_questions(row, kind))


def read_label(row: dict[str, Any]) -> Example:
    """Raises InvalidRow."""
    value = _the_answer(row, LABEL)
    labels = tuple(label(one, "the label") for one in value) if isinstance(value, list) else label(value, "the label")
    return Example(text=the_text(_fields(row), "fields"), label=labels)


def read_answer(row: dict[str, Any]) -> Example:
    """Raises InvalidRow."""
    return answered(the_text(_fields(row), "fields"), text(_the_answer(row, ANSWER), "the answer"))


def why_not(row: dict[str, Any]) -> InvalidRow:
    """Of an export that no format fits, the reason."""
    given = _given(row)
    if not given:
        return InvalidRow("has no response and no suggestion, so there is nothing to learn", "NothingToTrain")
    if any(_is_ranking(value) for values in given.values() for value in values):
        return InvalidRow("is annotated by a ranking, which are preferences", "PreferencePairs")
    return InvalidRow(
        f"has answers to {listed(given)}, which are neither labels nor texts",
        "UnknownFormat",
        "export questions of labels or texts",
    )


def _the_answer(row: dict[str, Any], kind: str) -> Any:
    questions = _questions(row, kind)
    if len(questions) > 1:
        raise InvalidRow(f"answers several questions ({listed(questions)})", "UnknownFormat", "export one of them")
    [values] = questions.values()
    return agreed(values)


def _questions(row: dict[str, Any], kind: str) -> dict[str, list[Any]]:
    """Questions whose answers may be of a kind, and these. A text is a label or an answer as its question's name has it; other names leave it open."""
    return {name: values for name, values in _given(row).items() if all(_may_be(kind, name, value) for value in values)}


def _may_be(kind: str, name: str, value: Any) -> bool:
    if isinstance(value, str):
        other = _LIKE[ANSWER if kind == LABEL else LABEL]
        return bool(_LIKE[kind].search(name)) or not other.search(name)
    is_label = isinstance(value, int) or (isinstance(value, list) and all(isinstance(one, str) for one in value))
    return kind == LABEL and is_label


def _is_ranking(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(one, dict) and "rank" in one for one in value)


def _given(row: dict[str, Any]) -> dict[str, list[Any]]:
    """Of each question the answers that were submitted, else the one that was suggested."""
    responses, suggestions = (_table if not isinstance(row.get("fields"), dict) else _record)(row)
    given = {name: values for name, values in responses.items() if values}
    return given or {name: [value] for name, value in suggestions.items() if value is not None}


def _table(row: dict[str, Any]) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    responses: dict[str, list[Any]] = {}
    suggestions: dict[str, Any] = {}
    for name, value in row.items():
        if (match := _SUFFIX.fullmatch(name)) is None or value is None:
            continue
        if match[2] == "suggestion":
            suggestions[match[1]] = value
        elif isinstance(value, list):
            states = row.get(f"{name}.status")
            states = states if isinstance(states, list) and len(states) == len(value) else ["submitted"] * len(value)
            responses[match[1]] = [one for one, state in zip(value, states, strict=True) if state == "submitted"]
    return responses, suggestions


def _record(row: dict[str, Any]) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    responses: dict[str, list[Any]] = {}
    given, suggested = row.get("responses"), row.get("suggestions")
    if isinstance(given, dict):  # version 2
        for name, answers in given.items():
            responses[name] = [one["value"] for one in _objects(answers) if _counts(one)]
    for answer in _objects(given):  # version 1
        for name, one in (answer.get("values") or {}).items() if _submitted(answer) else ():
            responses.setdefault(name, []).append(one.get("value") if isinstance(one, dict) else one)
    if isinstance(suggested, dict):
        return responses, {name: one.get("value") for name, one in suggested.items() if isinstance(one, dict)}
    return responses, {str(one.get("question_name")): one.get("value") for one in _objects(suggested)}


def _objects(values: Any) -> list[dict[str, Any]]:
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def _submitted(answer: dict[str, Any]) -> bool:
    return answer.get("status", "submitted") == "submitted" and isinstance(answer.get("values", {}), dict)


def _counts(answer: dict[str, Any]) -> bool:
    return answer.get("status", "submitted") == "submitted" and answer.get("value") is not None


def _fields(row: dict[str, Any]) -> dict[str, Any]:
    if isinstance(row.get("fields"), dict):
        return row["fields"]
    return {name: value for name, value in row.items() if "." not in name and name not in _OWN}
