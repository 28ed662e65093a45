"""Writes the sealed folder: rows in, shards, step plan, list of bad rows and manifest out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune_api.contract import RunConfig
from finetune_api.planner.steps import plan_steps
from finetune_api.spec import DataFormat
from finetune_api.status import DataStatus, PlanStatus

from finetune_trainer import sealed
from finetune_trainer.data import stepplan
from finetune_trainer.data.encode import Encoder, default_loss_on
from finetune_trainer.data.shards import FORMAT, KIND, Split, SplitCounts
from finetune_trainer.data.stepplan import StepPlan
from finetune_trainer.errors import BadInput
from finetune_trainer.prepare.build import BATCH_ROWS, Found, Part, divide
from finetune_trainer.prepare.inputs import Inputs
from finetune_trainer.prepare.rows import Invalid, RowReader, refuse_if_too_many

log = logging.getLogger("finetune.prepare")

INVALID = "invalid.jsonl"
_UNASKED_NEW_TOKENS = 512
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
    _describe(folder, manifest, inputs, encoder, reader, counts, invalid, found)


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


def _describe(
    folder: Path,
    manifest: dict[str, Any],
    inputs: Inputs,
    encoder: Encoder,
    reader: RowReader,
    counts: dict[str, SplitCounts],
    invalid: Invalid,
    found: Found,
) -> None:
    """Fill the manifest and write the step plan."""
    config, spec = inputs.config, inputs.config.spec
    form: DataFormat = reader.form  # type: ignore[assignment]
    training, train = spec.training, counts["train"]
    batch = training.global_batch_size or 16
    steps = plan_steps(
        train_rows=train.rows,
        global_batch_size=batch,
        epochs=training.epochs,
        max_steps=training.max_steps,
        checkpoint_every_steps=spec.checkpoint.every_steps,
    )
    longest = max(count.longest for count in counts.values())
    max_length = spec.data.max_length or longest
    new_tokens = spec.evaluation.generation.max_new_tokens or min(
        counts["test"].longest_answer + 8, _UNASKED_NEW_TOKENS
    )
    plan = StepPlan(
        steps.steps,
        train.rows,
        batch,
        stepplan.plan_key(
            data_digest=inputs.data_digest, seed=training.seed, max_length=max_length, global_batch_size=batch
        ),
    )
    sealed.write_json(stepplan.path_in(folder), plan.to_json())
    data_status = DataStatus(
        format=form,
        rows=reader.rows,
        invalid_rows=invalid.count,
        train_rows=train.rows,
        validation_rows=counts["validation"].rows,
        test_rows=counts["test"].rows,
        tokens=train.tokens,
        trained_tokens=train.trained_tokens,
        max_length=longest,
        truncated_rows=found.truncated,
        dropped_rows=found.dropped,
        digest=inputs.data_digest,
    )
    plan_status = PlanStatus(
        steps=steps.steps,
        epochs=steps.epochs,
        tokens=_tokens_of(plan, Split(folder, "train", [])),
        global_batch_size=batch,
        checkpoint_every_steps=steps.checkpoint_every_steps,
        validate_every_steps=steps.validate_every_steps,
        max_new_tokens=new_tokens,
    )
    loss_on = spec.data.loss_on or default_loss_on(form)
    manifest.update(
        inputs=inputs.digest(),
        job={"name": config.job.name, "namespace": config.job.namespace, "uid": config.job.uid, "run": config.job.run},
        digests=inputs.digests(),
        sources=[file.name for file in inputs.files],
        tokenizer={
            "pad": _pad_id(inputs.tokenizer),
            "eos": inputs.tokenizer.eos_token_id,
            "bos": inputs.tokenizer.bos_token_id,
            "stop": encoder.stop_ids(),
            "vocab_size": inputs.model.vocab_size,
        },
        model={
            "type": inputs.model.model_type,
            "parameters": inputs.model.parameters,
            "context_length": inputs.model.context_length,
        },
        resolved={
            "format": form,
            "loss_on": loss_on,
            "max_length": max_length,
            "global_batch_size": batch,
            "steps": steps.steps,
            "epochs": steps.epochs,
            "checkpoint_every_steps": steps.checkpoint_every_steps,
            "validate_every_steps": steps.validate_every_steps,
            "max_new_tokens": new_tokens,
        },
        counts={
            name: {
                "rows": count.rows,
                "tokens": count.tokens,
                "trained_tokens": count.trained_tokens,
                "longest": count.longest,
            }
            for name, count in counts.items()
        },
        lengths=sorted(found.lengths.items()),
        invalid=[{"file": name, "line": line, "reason": reason} for name, line, reason in invalid.first],
        notes=_notes(inputs, form, found),
        data=data_status.wire(),
        plan=plan_status.wire(),
    )


def _notes(inputs: Inputs, form: DataFormat, found: Found) -> list[str]:
    notes = list(found.notes)
    if inputs.config.spec.data.format is None:
        notes.append(f"The format {form} was recognised from the rows' fields.")
    if form in ("messages", "instruction") and inputs.tokenizer.finetune_template_is_default:
        notes.append(
            "The model has no chat template: a plain one was used (### User: / ### Assistant:) and is published with the result; "
            "prompts must be written the same way later."
        )
    if found.truncated:
        notes.append(
            f"{found.truncated} rows were longer than {inputs.longest_allowed()} tokens and lost their end; the longest had {found.longest_seen}."
        )
    if found.dropped:
        notes.append(
            f"{found.dropped} rows were left out because they are too long (the longest has {found.longest_seen} tokens) or hold nothing to learn."
        )
    if found.lost_answers:
        notes.append(
            f"{found.lost_answers} earlier answers are not learnt, because the model's chat template writes them in a way in which they could not be found again."
        )
    if found.special_text:
        notes.append(
            f"{found.special_text} rows contain text that the tokenizer reads as special tokens, such as an end-of-turn mark."
        )
    return notes


def _pad_id(tokenizer: Any) -> int:
    """Only ever a filler: what is learnt is said by the mask, so that a pad token equal to the end token harms nothing."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id


def _tokens_of(plan: StepPlan, train: Split) -> int:
    lengths = train.lengths()
    epochs, rest = divmod(plan.steps, plan.steps_per_epoch)
    last = sum(int(lengths[plan.rows(epochs * plan.steps_per_epoch + step)].sum()) for step in range(rest))
    return epochs * int(lengths.sum()) + last
