"""The five formats of examples, the dialects in which they are written, and what is wrong with a row that is in none of them."""

from __future__ import annotations

from typing import Any

from finetune_api.data import DataFormat

from finetune_trainer.data.formats.dialects import DIALECTS, Dialect
from finetune_trainer.data.formats.example import Example, InvalidRow, Label
from finetune_trainer.data.formats.preferences import ADVICE, preference
from finetune_trainer.data.formats.strangers import half, stranger
from finetune_trainer.data.readers import RawRow

__all__ = ["Example", "InvalidRow", "Label", "detect", "evidence", "read", "value_of"]

_OF_FORM: dict[DataFormat, tuple[Dialect, ...]] = {}
for _dialect in DIALECTS:
    _OF_FORM[_dialect.form] = (*_OF_FORM.get(_dialect.form, ()), _dialect)


def value_of(row: RawRow) -> dict[str, Any]:
    """What was read. Raises InvalidRow where it could not be."""
    if row.value is None:
        raise InvalidRow(row.fault or "cannot be read", row.code or "InvalidJson", row.remedy)
    return row.value


def detect(row: dict[str, Any]) -> DataFormat:
    """The format of a row. Raises InvalidRow when it is in none, in several, or one of preferences."""
    found = _fitting(row)
    if reason := preference(row):
        unless = f"; or set spec.data.format to {next(iter(found))} to learn the rest" if found else ""
        raise InvalidRow(reason, "PreferencePairs", f"{ADVICE}{unless}")
    if not found:
        raise half(row) or stranger(row)
    if len(found) > 1:
        which = " or ".join(f"{form} (by {by})" for form, by in found.items())
        raise InvalidRow(f"may be {which}", "UnknownFormat", "set spec.data.format to the one that is meant")
    return next(iter(found))


def read(row: dict[str, Any], form: DataFormat) -> Example:
    """Raises InvalidRow with one clause that says what is wrong."""
    if form in ("messages", "prompt-completion", "instruction"):
        _refuse_media(row)
    for dialect in _OF_FORM[form]:
        if dialect.fits(row):
            return dialect.read(row)
    raise _misfit(row, form)


def _refuse_media(row: dict[str, Any]) -> None:
    """Raises InvalidRow for a row whose words are about an image, a video or a sound that the model would not be given.

    A single image may as well be the picture of a recipe: it counts where the text has its place."""
    for kind in ("image", "video", "audio"):
        for name in (kind, f"{kind}s"):
            if row.get(name) and (name != kind or f"<{kind}>" in str(row)):
                raise InvalidRow(
                    f"{name} is not empty, and only text can be trained on",
                    "WrongType",
                    "leave the row out, or remove the field where the answer does not need it",
                )


def evidence(row: dict[str, Any], form: DataFormat) -> str:
    """The fields by which the row is of that form, for people: `text and label`, `conversations (ShareGPT)`."""
    return next(dialect.evidence(row) for dialect in _OF_FORM[form] if dialect.fits(row))


def _fitting(row: dict[str, Any]) -> dict[DataFormat, str]:
    """Formats that a row may be in, and by what. Any row may have a text beside: it is plain text where it is nothing else."""
    found: dict[DataFormat, str] = {}
    for dialect in DIALECTS:
        if dialect.form not in found and dialect.fits(row):
            found[dialect.form] = dialect.evidence(row)
    if len(found) > 1:
        found.pop("text", None)
    return found


def _misfit(row: dict[str, Any], form: DataFormat) -> InvalidRow:
    """Why a row is not of a format that was named, or recognised from the rows before it."""
    if own := half(row, form):
        return own
    if reason := preference(row):
        return InvalidRow(reason, "PreferencePairs", ADVICE)
    if found := _fitting(row):
        other, by = next(iter(found.items()))
        return InvalidRow(
            f"looks like {other} (by {by}), but {form} is read here",
            "MixedFormats",
            "keep each format in its own job, convert these rows, or set spec.data.format",
        )
    unknown = half(row) or stranger(row)
    return InvalidRow(f"is not in format {form}: it {unknown.reason}", unknown.code, unknown.remedy)
