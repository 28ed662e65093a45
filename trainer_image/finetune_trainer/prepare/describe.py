"""The manifest of the shards and the step plan: what was found, what was decided, what is worth knowing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune_api.data import DataFormat
from finetune_api.findings import Finding
from finetune_api.planner.share import USUAL_BATCH
from finetune_api.planner.steps import VALIDATION_SHARE, validated_rows
from finetune_api.status import DataStatus, PlanStatus

from finetune_trainer import sealed, sources
from finetune_trainer.data import stepplan
from finetune_trainer.data.encode import default_loss_on
from finetune_trainer.data.shards import Split, SplitCounts
from finetune_trainer.data.stepplan import StepPlan
from finetune_trainer.data.tokenizer import pad_id, template_of
from finetune_trainer.fixes.steps import rows_say
from finetune_trainer.prepare.build import Found
from finetune_trainer.prepare.files import notes_of
from finetune_trainer.prepare.inputs import Inputs
from finetune_trainer.prepare.planned import Planned
from finetune_trainer.prepare.read import Made, Reading
from finetune_trainer.prepare.record import status as status_of
from finetune_trainer.prepare.rows import RowReader

_UNASKED_NEW_TOKENS = 512
_LABELS_SHOWN = 8


def describe(
    folder: Path, reading: Reading, counts: dict[str, SplitCounts], findings: Sequence[Finding], planned: Planned
) -> dict[str, Any]:
    """Write the step plan into `folder`, which holds the splits, and give the manifest's fields."""
    inputs, made, reader, invalid, found = (
        reading.inputs,
        reading.made,
        reading.reader,
        reading.invalid,
        reading.found,
    )
    assert made is not None
    config, spec, steps = inputs.config, planned.spec, planned.steps
    form: DataFormat = reader.form  # type: ignore[assignment]
    training, train = spec.training, counts["train"]
    batch = training.global_batch_size or USUAL_BATCH
    longest = max(count.longest for count in counts.values())
    max_length = spec.data.max_length or longest
    new_tokens = spec.evaluation.generation.max_new_tokens or min(
        counts["test"].longest_answer + 8, _UNASKED_NEW_TOKENS
    )
    labels = made.labels.names() if made.labels else None
    validation = counts["validation"].rows
    validated = validated_rows(
        validation,
        trained_rows=round(steps.epochs * train.rows),
        validations=-(-steps.steps // steps.validate_every_steps),
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
        validation_rows=validation,
        test_rows=counts["test"].rows,
        tokens=train.tokens,
        trained_tokens=train.trained_tokens,
        max_length=longest,
        truncated_rows=found.truncated,
        dropped_rows=found.dropped,
        digest=inputs.data_digest,
        findings=status_of(findings),
        sources=sources.pinned(config) or None,
    )
    plan_status = PlanStatus(
        steps=steps.steps,
        epochs=steps.epochs,
        tokens=_tokens_of(plan, Split(folder, "train", [])),
        global_batch_size=batch,
        checkpoint_every_steps=steps.checkpoint_every_steps,
        validate_every_steps=steps.validate_every_steps,
        max_new_tokens=None if labels else new_tokens,
    )
    planned.draw(plan_status)
    loss_on = spec.data.loss_on or default_loss_on(form)
    return {
        "inputs": inputs.digest(),
        "facts": planned.facts.wire(),
        "decided": planned.decided,
        "job": {
            "name": config.job.name,
            "namespace": config.job.namespace,
            "uid": config.job.uid,
            "run": config.job.run,
        },
        "digests": inputs.digests(),
        "sources": [file.name for file in inputs.files],
        "tokenizer": {
            "pad": pad_id(inputs.tokenizer, inputs.model.vocab_size),
            "eos": inputs.tokenizer.eos_token_id,
            "bos": inputs.tokenizer.bos_token_id,
            "stop": made.encoder.stop_ids(),
            "segments": _has_segments(inputs),
            "vocab_size": inputs.model.vocab_size,
        },
        "model": {
            "type": inputs.model.model_type,
            "parameters": inputs.model.parameters,
            "context_length": inputs.model.context_length,
        },
        "resolved": {
            "task": made.task,
            "format": form,
            "loss_on": None if made.labels else loss_on,
            **({"labels": labels, "multi_label": bool(made.labels.multi_label)} if made.labels else {}),
            "max_length": max_length,
            "global_batch_size": batch,
            "steps": steps.steps,
            "epochs": steps.epochs,
            "checkpoint_every_steps": steps.checkpoint_every_steps,
            "validate_every_steps": steps.validate_every_steps,
            "validated_rows": validated,
            "max_new_tokens": new_tokens,
        },
        "counts": {
            name: {
                "rows": count.rows,
                "tokens": count.tokens,
                "trained_tokens": count.trained_tokens,
                "longest": count.longest,
            }
            for name, count in counts.items()
        },
        "lengths": sorted(found.lengths.items()),
        "invalid": [{"file": name, "line": line, "reason": reason} for name, line, reason in invalid.first],
        "notes": [
            *_notes(inputs, made, reader, found),
            *_label_notes(folder, labels),
            *([_few_validated(validated, validation)] if validated < validation else ()),
        ],
        "data": data_status.wire(),
        "plan": plan_status.wire(),
    }


def _notes(inputs: Inputs, made: Made, reader: RowReader, found: Found) -> list[str]:
    notes = notes_of(inputs.files) + found.notes
    spec, tokenizer = inputs.config.spec, inputs.tokenizer
    chat = reader.form in ("messages", "instruction") and made.task == "causal-lm"
    if spec.data.format is None:
        fields = f"field{'s' * (' and ' in (reader.evidence or ''))} {reader.evidence}"
        notes.append(f"The format {reader.form} was recognised from the rows' {fields}.")
    if spec.model.task is None and made.task != "causal-lm":
        notes.append(f"The task {made.task} was decided from the model and the data.")
    for field, value in (("template", spec.data.template), ("templateArguments", spec.data.template_arguments)):
        if value is not None and not chat:
            notes.append(f"spec.data.{field} is not used: these rows are not written as conversations.")
    for name in spec.data.template_arguments or () if chat else ():
        if name not in template_of(tokenizer):
            notes.append(
                f"spec.data.templateArguments: the chat template has no variable {name}: check its spelling, or remove it."
            )
    vocabulary, pad = inputs.model.vocab_size, tokenizer.pad_token_id
    if pad >= vocabulary if pad is not None else made.labels:
        what = (
            f"pad token is {pad}, and the model has tokens below {vocabulary}" if pad else "tokenizer has no pad token"
        )
        notes.append(
            f"The {what}: token {tokenizer.convert_ids_to_tokens(pad_id(tokenizer, vocabulary))!r} fills up short rows, and is published with the result as the pad token."
        )
    if chat and tokenizer.finetune_template_is_default:
        notes.append(
            "The model has no chat template: a plain one was used (### User: / ### Assistant:) and is published with the result; "
            "prompts must be written the same way later."
        )
    if found.truncated:
        what = ("has", "have") if made.task == "seq2seq-lm" else ("is", "are")
        longer = "a source or a target longer" if made.task == "seq2seq-lm" else "longer"
        notes.append(
            f"{rows_say(found.truncated, *what)} {longer} than {inputs.longest_allowed()} tokens and cut at the end; the longest has {found.longest_seen}."
        )
    if found.dropped:
        notes.append(
            f"{rows_say(found.dropped, 'was', 'were')} left out: too long (the longest has {found.longest_seen} tokens), or nothing to train on."
        )
    if found.lost_answers:
        notes.append(
            f"Earlier answers that the model's chat template rewrites or shortens, such as by their thoughts, are not trained: {found.lost_answers:,}."
        )
    if found.special_text:
        notes.append(
            f"{rows_say(found.special_text, 'contains', 'contain')} text that the tokenizer reads as special tokens, such as an end-of-turn mark."
        )
    return notes


def _few_validated(validated: int, rows: int) -> str:
    return (
        f"Each validation measures {validated:,} of the {rows:,} validation rows, evenly spread: so all validations together take "
        f"about {VALIDATION_SHARE:.0%} of the training's time."
    )


def _label_notes(folder: Path, labels: list[str] | None) -> list[str]:
    """Labels that the validation or test split has, and the training split has not."""
    if not labels:
        return []
    rows = Split(folder, "train", [], labels=len(labels)).label_counts()
    missing = [label for label, count in zip(labels, rows, strict=True) if not count]
    if not missing:
        return []
    shown = ", ".join(missing[:_LABELS_SHOWN]) + (" ..." if len(missing) > _LABELS_SHOWN else "")
    return [
        f"No training row has {'the label' if len(missing) == 1 else 'one of the labels'} {shown}: all rows with it went to validation or test."
    ]


def _has_segments(inputs: Inputs) -> bool:
    """Whether tokenizer and model tell a text from its pair by token_type_ids."""
    kinds = getattr(inputs.model.config, "type_vocab_size", None) or 0
    return "token_type_ids" in inputs.tokenizer.model_input_names and kinds > 1


def _tokens_of(plan: StepPlan, train: Split) -> int:
    lengths = train.lengths()
    epochs, rest = divmod(plan.steps, plan.steps_per_epoch)
    last = sum(int(lengths[plan.rows(epochs * plan.steps_per_epoch + step)].sum()) for step in range(rest))
    return epochs * int(lengths.sum()) + last
