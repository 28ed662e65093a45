"""Why data is refused: one sentence that names the file and line, or the field, and what to do. Small checks, asked in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from finetune_api.checks import CHECKS
from finetune_api.contract import RunConfig
from finetune_api.data import DataSpec
from finetune_api.findings import Finding

from finetune_trainer.data.labels import LabelSet
from finetune_trainer.data.shards import SplitCounts
from finetune_trainer.errors import BadInput
from finetune_trainer.fixes.steps import rows_say
from finetune_trainer.prepare.files import DataFile
from finetune_trainer.prepare.noted import sentence
from finetune_trainer.prepare.read import Reading
from finetune_trainer.prepare.rows import Invalid

INVALID = "invalid.jsonl"
"""Name of the list of all rows that cannot be used, one JSON object a line."""

Refusal = BadInput | None


def too_many_invalid(invalid: Invalid, rows: int, data: DataSpec, listing: str | None = None) -> Refusal:
    """`listing`: where all of them are listed, for people."""
    allowed = data.checks.max_invalid_fraction
    if not invalid.count or invalid.count / rows <= allowed:
        return None
    name, line, reason = invalid.first[0]
    others = f" ({invalid.count} of {rows} rows cannot be used)" if rows > 1 else ""
    share = f"data.checks.maxInvalidFraction allows {allowed:.2%}" if allowed else "none is allowed"
    return BadInput(
        f"{name}:{line}: {reason}{others}",
        code="InvalidData",
        remedy=f"correct the rows ({share})"
        + (f"; all of them are listed in {listing}" if listing else "")
        + ("" if allowed else "; or set spec.data.checks.maxInvalidFraction to leave them out"),
    )


def nothing_usable(invalid: Invalid, rows: int) -> Refusal:
    if not rows:
        return BadInput(f"{invalid.files[0].name} holds no rows", code="InvalidData")
    if invalid.count < rows:
        return None
    name, line, reason = invalid.first[0]
    others = f" (none of {rows} rows can be used)" if rows > 1 else ""
    return BadInput(f"{name}:{line}: {reason}{others}", code="InvalidData")


def _invalid(reading: Reading) -> Refusal:
    inputs = reading.inputs
    listed = listing(inputs.config) if inputs.stays else None
    return too_many_invalid(reading.invalid, reading.reader.rows, inputs.config.spec.data, listed)


def _nothing_left(reading: Reading) -> Refusal:
    if reading.made is not None and "train" in reading.parts and len(reading.parts["train"].keys):
        return None
    invalid, rows, found = reading.invalid, reading.reader.rows, reading.found
    return nothing_usable(invalid, rows) or BadInput(
        f"no row is left to train on: {rows_say(rows, 'was', 'were')} read, {invalid.count} invalid, {found.dropped} too long or without an answer within {reading.inputs.longest_allowed()} tokens",
        code="InvalidData",
        remedy="raise spec.data.maxLength, or set spec.data.overlong to truncate",
    )


def _one_class(reading: Reading) -> Refusal:
    labels = reading.made.labels if reading.made else None
    return nothing_to_tell_apart(labels, reading.inputs.files) if labels else None


def nothing_to_tell_apart(labels: LabelSet, files: Sequence[DataFile]) -> Refusal:
    names = labels.names()
    if len(names) > (0 if labels.multi_label else 1):
        return None
    where = f"{next(file.name for file in files if file.part == 'train')}:1"
    return BadInput(
        f"{where}: every row has the label {names[0]!r}, and a classifier needs two to tell apart"
        if names
        else f"{where}: no row has any label, and a classifier needs one to tell",
        code="InvalidData",
        remedy="add rows with other labels",
    )


def _foreign_tokenizer(reading: Reading) -> Refusal:
    largest = max(part.largest_id for part in reading.parts.values())
    vocabulary = reading.inputs.model.vocab_size
    if largest < vocabulary:
        return None
    return BadInput(
        f"spec.model.uri: the tokenizer gives token {largest}, but the model's vocabulary has {vocabulary}: they do not belong together",
        code="InvalidModel",
    )


AFTER_READING: Sequence[Callable[[Reading], Refusal]] = (
    _invalid,
    _nothing_left,
    _one_class,
    _foreign_tokenizer,
)


def after_reading(reading: Reading) -> None:
    """Raises BadInput (InvalidData, InvalidModel) when the rows cannot be trained on, whatever they say."""
    for ask in AFTER_READING:
        if (refusal := ask(reading)) is not None:
            raise refusal


def by_findings(findings: Sequence[Finding]) -> None:
    """Raises BadInput (InvalidData) for the first finding that data.checks does not allow."""
    worst = next((finding for finding in findings if finding.refuses), None)
    if worst is None:
        return
    others = sum(finding.refuses for finding in findings) - 1
    more = f" (and {others} other check{'s' * (others > 1)} refuse{'s' * (others == 1)} the data)" if others else ""
    limit = f"; spec.data.checks has {worst.code} among those that refuse the data"
    mend = CHECKS[worst.code].fix
    fix = f", or name the fix {mend} in spec.data.fixes" if mend else ""
    raise BadInput(f"{sentence(worst)}{more}", code="InvalidData", remedy=f"{worst.remedy}{fix}{limit}")


def too_few(data: DataSpec, rows: int, invalid: int) -> Finding | None:
    """`rows` are left to train on."""
    least = data.checks.min_examples
    if rows >= least:
        return None
    return Finding(
        code="TooFewExamples",
        severity="Error",
        count=rows,
        message=f"spec.data.checks.minExamples asks for {least} training examples, but there are {rows}"
        + (f" ({invalid} rows are invalid)" if invalid else ""),
        remedy=CHECKS["TooFewExamples"].remedy,
        refuses=True,
    )


def after_dividing(reading: Reading, counts: dict[str, SplitCounts]) -> None:
    """Raises BadInput when a part has too few rows."""
    spec = reading.inputs.config.spec
    few = too_few(spec.data, counts["train"].rows, reading.invalid.count)
    if few is not None:
        raise BadInput(few.message, code="InvalidData", remedy=few.remedy)
    if spec.training.early_stopping is not None and not counts["validation"].rows:
        raise BadInput(
            "spec.training.earlyStopping: there are no validation rows to measure on",
            code="InvalidSpec",
            remedy="name data.validation, give data.split.validation a share, or remove earlyStopping",
        )


def listing(config: RunConfig) -> str:
    """The list of all bad rows, in the user's terms."""
    return f"{config.spec.workspace.uri.rstrip('/')}/{config.job.uid}/{config.job.run}/{INVALID}"
