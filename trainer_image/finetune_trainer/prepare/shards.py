"""Writes the sealed folder: rows in, shards, step plan, list of bad rows and manifest out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune_api.contract import RunConfig
from finetune_api.status import DataStatus, PlanStatus

from finetune_trainer import sealed
from finetune_trainer.data.labels import LabelSet
from finetune_trainer.data.shards import FORMAT, KIND, SplitCounts
from finetune_trainer.errors import BadInput
from finetune_trainer.prepare.build import BATCH_ROWS, Found, Part, divide
from finetune_trainer.prepare.describe import Made, describe
from finetune_trainer.prepare.inputs import Inputs
from finetune_trainer.prepare.rows import Invalid, RowReader, refuse_if_too_many
from finetune_trainer.prepare.task import decide, encoder_for

log = logging.getLogger("finetune.prepare")

INVALID = "invalid.jsonl"
_READING_PERCENT = 90.0


def write_shards(inputs: Inputs, report: Callable[[int, float], None]) -> tuple[DataStatus, PlanStatus]:
    """Raises BadInput (InvalidData) when the rows are not what the spec allows; every bad row is then in the run's invalid.jsonl."""
    layout = inputs.config.layout
    manifest: dict[str, Any] = {"kind": KIND, "format": FORMAT}
    with sealed.sealing(layout.prepared, manifest) as folder:
        try:
            with (folder / INVALID).open("w") as file:
                _fill(folder, Invalid(file), inputs, manifest, report)
        except BadInput:
            (folder / INVALID).replace(layout.root / INVALID)
            raise
    (layout.root / INVALID).unlink(missing_ok=True)
    return DataStatus.model_validate(manifest["data"]), PlanStatus.model_validate(manifest["plan"])


def _fill(
    folder: Path, invalid: Invalid, inputs: Inputs, manifest: dict[str, Any], report: Callable[[int, float], None]
) -> None:
    config, data = inputs.config, inputs.config.spec.data
    found, parts = Found(), {}
    reader, made = _read(folder, invalid, inputs, found, parts, report)
    for name, line, reason in invalid.first:
        log.warning("%s:%d: %s", name, line, reason)
    if invalid.count > len(invalid.first):
        log.warning("... and %d more rows that cannot be used", invalid.count - len(invalid.first))
    refuse_if_too_many(invalid, reader.rows, data.checks.max_invalid_fraction, _listing(config))
    if made is None or "train" not in parts or not len(parts["train"].keys):
        raise _nothing_left(inputs, reader, invalid, found)
    if made.labels:
        _check_labels(inputs, made.labels)
    largest = max(part.largest_id for part in parts.values())
    if largest >= inputs.model.vocab_size:
        raise BadInput(
            f"spec.model.uri: the tokenizer gives token {largest}, but the model's vocabulary has {inputs.model.vocab_size}: they do not belong together",
            code="InvalidModel",
        )
    report(reader.rows, _READING_PERCENT + 2)
    counts = divide(parts, data, folder, found, made.labels)
    _check_enough(inputs, counts, invalid)
    report(reader.rows, 98.0)
    manifest.update(describe(folder, inputs, made, reader, counts, invalid, found))


def _read(
    folder: Path,
    invalid: Invalid,
    inputs: Inputs,
    found: Found,
    parts: dict[str, Part],
    report: Callable[[int, float], None],
) -> tuple[RowReader, Made | None]:
    data = inputs.config.spec.data
    total = sum(file.path.stat().st_size for file in inputs.files) or 1
    done = 0

    def advance(rows: int, count: int) -> None:
        nonlocal done
        done += count
        report(reader.rows, 1 + (_READING_PERCENT - 1) * min(done / total, 1))

    reader = RowReader(data.format, invalid, advance)
    made: Made | None = None
    names = [file.name for file in inputs.files]
    for index, file in enumerate(inputs.files):
        for batch in reader.batches(index, file, BATCH_ROWS):
            if not batch:
                continue
            assert reader.form
            if made is None:
                task = decide(inputs, reader.form)
                encoder = encoder_for(inputs, task, reader.form)
                made = Made(task, encoder, LabelSet() if task == "sequence-classification" else None)
            if file.part not in parts:
                parts[file.part] = Part(
                    folder / f"rows-{file.part}",
                    file.part,
                    seed=data.split.seed,
                    encoder=made.encoder,
                    labels=made.labels,
                    max_length=inputs.longest_allowed(),
                    drop=data.overlong == "drop",
                    found=found,
                )
            parts[file.part].add(batch, invalid, names)
    return reader, made


def _check_labels(inputs: Inputs, labels: LabelSet) -> None:
    """Raises BadInput when there is nothing to tell apart."""
    names = labels.names()
    if len(names) > (0 if labels.multi_label else 1):
        return
    where = f"{next(file.name for file in inputs.files if file.part == 'train')}:1"
    raise BadInput(
        f"{where}: every row has the label {names[0]!r}, and a classifier needs two to tell apart"
        if names
        else f"{where}: no row has any label, and a classifier needs one to tell",
        code="InvalidData",
        remedy="add rows with other labels",
    )


def _listing(config: RunConfig) -> str:
    """The list of all bad rows, in the user's terms."""
    return f"{config.spec.workspace.uri.rstrip('/')}/{config.job.uid}/{config.job.run}/{INVALID}"


def _nothing_left(inputs: Inputs, reader: RowReader, invalid: Invalid, found: Found) -> BadInput:
    where = inputs.files[0].name
    if not reader.rows:
        return BadInput(f"{where} holds no rows", code="InvalidData")
    if invalid.count == reader.rows:
        name, line, reason = invalid.first[0]
        return BadInput(f"{name}:{line}: {reason} (none of {reader.rows} rows can be used)", code="InvalidData")
    return BadInput(
        f"no row is left to train on: of {reader.rows} rows {invalid.count} are invalid, {found.dropped} are too long or hold nothing to learn within {inputs.longest_allowed()} tokens",
        code="InvalidData",
        remedy="raise spec.data.maxLength, or set spec.data.overlong to truncate",
    )


def _check_enough(inputs: Inputs, counts: dict[str, SplitCounts], invalid: Invalid) -> None:
    least, have = inputs.config.spec.data.checks.min_examples, counts["train"].rows
    if have < least:
        raise BadInput(
            f"spec.data.checks.minExamples asks for {least} training examples, but there are {have}"
            + (f" ({invalid.count} rows are invalid)" if invalid.count else ""),
            code="InvalidData",
            remedy="add examples, or lower minExamples",
        )
    if inputs.config.spec.training.early_stopping is not None and not counts["validation"].rows:
        raise BadInput(
            "spec.training.earlyStopping: there are no validation rows to measure on",
            code="InvalidSpec",
            remedy="name data.validation, give data.split.validation a share, or remove earlyStopping",
        )
