"""Label Studio's JSON exports: what annotators chose is a label, what they wrote is an answer."""

from __future__ import annotations

from typing import Any

from finetune_trainer.data.formats.answers import agreed, the_text
from finetune_trainer.data.formats.example import Example, InvalidRow
from finetune_trainer.data.formats.fields import called, label, listed, text
from finetune_trainer.data.formats.pairs import answered

CHOICES, TEXTAREA = "choices", "textarea"


def is_export(row: dict[str, Any]) -> bool:
    """Whether a row is a task with its annotations."""
    return isinstance(row.get("data"), dict) and isinstance(row.get("annotations"), list)


def holds(row: dict[str, Any], kind: str) -> bool:
    """Whether a row is an export in which anything of this kind was annotated."""
    return is_export(row) and any(result["type"] == kind for results in _submitted(row) for result in results)


def read_choices(row: dict[str, Any]) -> Example:
    """Raises InvalidRow."""
    chosen = _the_answer(row, CHOICES)
    labels = tuple(label(value, "the choice") for value in chosen)
    return Example(text=the_text(row["data"], "data"), label=labels[0] if len(labels) == 1 else labels)


def read_textarea(row: dict[str, Any]) -> Example:
    """Raises InvalidRow."""
    written = _the_answer(row, TEXTAREA)
    if len(written) != 1:
        raise InvalidRow(f"its annotation has {len(written)} texts", "WrongType", "keep the one that is the answer")
    return answered(the_text(row["data"], "data"), text(written[0], "the annotation's text"))


def why_not(row: dict[str, Any]) -> InvalidRow:
    """Of an export that no format fits, the reason."""
    if not any(_submitted(row)):
        return InvalidRow("has no annotation that was submitted, so there is nothing to learn", "NothingToTrain")
    kinds = sorted({result["type"] for results in _submitted(row) for result in results})
    if "pairwise" in kinds or "ranker" in kinds:
        return InvalidRow(f"is annotated by {called(kinds[0])}, which are preferences", "PreferencePairs")
    return InvalidRow(
        f"is annotated by {listed(kinds)}",
        "UnknownFormat",
        "of Label Studio's kinds only choices and textarea are supported",
    )


def _the_answer(row: dict[str, Any], kind: str) -> list[Any]:
    """What the annotators agree on. An annotation that is marked as ground truth needs no others."""
    questions = {result["from"] for results in _submitted(row) for result in results if result["type"] == kind}
    if len(questions) > 1:
        raise InvalidRow(f"answers several questions ({listed(questions)})", "UnknownFormat", "export one of them")
    given = [
        [value for result in results if result["type"] == kind for value in result["values"]]
        for results in _submitted(row)
    ]
    return agreed([values for values in given if values])


def _submitted(row: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Of each annotation that counts, its results as {"type", "from", "values"}."""
    annotations = [
        annotation
        for annotation in row["annotations"]
        if isinstance(annotation, dict) and not annotation.get("was_cancelled") and annotation.get("result")
    ]
    annotations = [one for one in annotations if one.get("ground_truth")][:1] or annotations
    return [[found for result in _listed(one["result"]) if (found := _result(result))] for one in annotations]


def _result(result: Any) -> dict[str, Any] | None:
    if not isinstance(result, dict) or not isinstance(result.get("type"), str):
        return None
    kind, value = result["type"], result.get("value")
    inside = value.get("text" if kind == TEXTAREA else kind) if isinstance(value, dict) else None
    return {"type": kind, "from": str(result.get("from_name", "")), "values": _listed(inside)}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
