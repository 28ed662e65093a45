"""The manifest of the shards and the step plan: what was found, what was decided, what is worth knowing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune_api.data import DataFormat
from finetune_api.planner.steps import plan_steps
from finetune_api.status import DataStatus, PlanStatus

from finetune_trainer import sealed
from finetune_trainer.data import stepplan
from finetune_trainer.data.encode import Encoder, default_loss_on
from finetune_trainer.data.shards import Split, SplitCounts
from finetune_trainer.data.stepplan import StepPlan
from finetune_trainer.prepare.build import Found
from finetune_trainer.prepare.inputs import Inputs
from finetune_trainer.prepare.rows import Invalid, RowReader

_UNASKED_NEW_TOKENS = 512


def describe(
    folder: Path,
    inputs: Inputs,
    encoder: Encoder,
    reader: RowReader,
    counts: dict[str, SplitCounts],
    invalid: Invalid,
    found: Found,
) -> dict[str, Any]:
    """Write the step plan into `folder`, which holds the splits, and give the manifest's fields."""
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
    return {
        "inputs": inputs.digest(),
        "job": {
            "name": config.job.name,
            "namespace": config.job.namespace,
            "uid": config.job.uid,
            "run": config.job.run,
        },
        "digests": inputs.digests(),
        "sources": [file.name for file in inputs.files],
        "tokenizer": {
            "pad": _pad_id(inputs.tokenizer),
            "eos": inputs.tokenizer.eos_token_id,
            "bos": inputs.tokenizer.bos_token_id,
            "stop": encoder.stop_ids(),
            "vocab_size": inputs.model.vocab_size,
        },
        "model": {
            "type": inputs.model.model_type,
            "parameters": inputs.model.parameters,
            "context_length": inputs.model.context_length,
        },
        "resolved": {
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
        "notes": _notes(inputs, form, found),
        "data": data_status.wire(),
        "plan": plan_status.wire(),
    }


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
