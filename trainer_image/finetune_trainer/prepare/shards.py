"""Writes the sealed folder: rows in, shards, step plan, list of bad rows and manifest out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune_api.contract import RunConfig
from finetune_api.status import DataStatus, PlanStatus

from finetune_trainer import sealed
from finetune_trainer.data.encode import Encoder, default_loss_on
from finetune_trainer.data.shards import FORMAT, KIND, SplitCounts
from finetune_trainer.errors import BadInput
from finetune_trainer.prepare.build import BATCH_ROWS, Found, Part, divide
from finetune_trainer.prepare.describe import describe
from finetune_trainer.prepare.inputs import Inputs
from finetune_trainer.prepare.rows import Invalid, RowReader, refuse_if_too_many

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
    reader, encoder = _read(folder, invalid, inputs, found, parts, report)
    for name, line, reason in invalid.first:
        log.warning("%s:%d: %s", name, line, reason)
    if invalid.count > len(invalid.first):
        log.warning("... and %d more rows that cannot be used", invalid.count - len(invalid.first))
    refuse_if_too_many(invalid, reader.rows, data.checks.max_invalid_fraction, _listing(config))
    if encoder is None or not len(parts["train"].keys):
        raise _nothing_left(inputs, reader, invalid, found)
    largest = max(part.largest_id for part in parts.values())
    if largest >= inputs.model.vocab_size:
        raise BadInput(
            f"spec.model.uri: the tokenizer gives token {largest}, but the model's vocabulary has {inputs.model.vocab_size}: they do not belong together",
            code="InvalidModel",
        )
    report(reader.rows, _READING_PERCENT + 2)
    counts = divide(parts, data, folder, found)
    _check_enough(inputs, counts, invalid)
    report(reader.rows, 98.0)
    assert reader.form
    manifest.update(describe(folder, inputs, encoder, reader, counts, invalid, found))


def _read(
    folder: Path,
    invalid: Invalid,
    inputs: Inputs,
    found: Found,
    parts: dict[str, Part],
    report: Callable[[int, float], None],
) -> tuple[RowReader, Encoder | None]:
    data = inputs.config.spec.data
    total = sum(file.path.stat().st_size for file in inputs.files) or 1
    done = 0

    def advance(rows: int, count: int) -> None:
        nonlocal done
        done += count
        report(reader.rows, 1 + (_READING_PERCENT - 1) * min(done / total, 1))

    reader = RowReader(data.format, invalid, advance)
    encoder = None
    names = [file.name for file in inputs.files]
    for index, file in enumerate(inputs.files):
        for batch in reader.batches(index, file, BATCH_ROWS):
            if not batch:
                continue
            assert reader.form
            encoder = encoder or Encoder(inputs.tokenizer, reader.form, data.loss_on or default_loss_on(reader.form))
            if file.part not in parts:
                parts[file.part] = Part(
                    folder / f"rows-{file.part}",
                    file.part,
                    seed=data.split.seed,
                    encoder=encoder,
                    max_length=inputs.longest_allowed(),
                    drop=data.overlong == "drop",
                    found=found,
                )
            parts[file.part].add(batch, invalid, names)
    return reader, encoder


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
