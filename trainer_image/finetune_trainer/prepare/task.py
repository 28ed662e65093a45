"""The task of a run, once the data's format is known: what it is, and whether the rest of the spec can go with it."""

from __future__ import annotations

from finetune_api import combinations
from finetune_api.data import DataFormat, DataSpec
from finetune_api.method import Task
from finetune_api.spec import FineTuneJobSpec

from finetune_trainer.data.encode import Encoder, RowEncoder, default_loss_on
from finetune_trainer.data.encode_classes import ClassEncoder
from finetune_trainer.data.encode_pairs import PairEncoder
from finetune_trainer.data.tokenizer import check_end_token
from finetune_trainer.errors import BadInput
from finetune_trainer.prepare.inputs import Inputs
from finetune_trainer.prepare.model import check_method, task_of


def decide(inputs: Inputs, form: DataFormat) -> Task:
    """Raises BadInput (InvalidSpec) when the task, or the format that was recognised, cannot go with the rest of the spec."""
    spec = inputs.config.spec
    task = task_of(inputs.model, spec, form)
    check(spec, task, form)
    if spec.data.format is None and task != task_of(inputs.model, spec, None):
        check_method(inputs.model, spec, task, inputs.adapter)  # what was checked before was another task
    if task != "sequence-classification":
        check_end_token(inputs.tokenizer, field="spec.model.uri")
    return task


def check(spec: FineTuneJobSpec, task: Task, form: DataFormat) -> None:
    """What the API server could not check, because it knows neither the data nor the model. Raises BadInput (InvalidSpec)."""
    decided = spec.model_copy(
        update={
            "model": spec.model.model_copy(update={"task": task}),
            "data": spec.data.model_copy(update={"format": form}),
        }
    )
    broken = [rule.message for rule in DataSpec.RULES if rule.check is not None and not rule.check(decided.data)]
    broken += [combination.message for combination in combinations.refused(decided)]
    early = spec.training.early_stopping
    if form == "text" and early is not None and early.metric == "exact-match":
        broken.append("training.earlyStopping.metric: plain text has no answers to match; take loss or perplexity")
    if not broken:
        return
    found = []
    if spec.model.task is None:
        found.append(f"spec.model.task is not set: for this model and data it is {task}")
    if spec.data.format is None:
        found.append(f"spec.data.format is not set: it was recognised from the rows as {form}")
        if form == "classification":
            found.append("set spec.data.format: text to learn the texts without their labels")
    raise BadInput(f"spec.{broken[0]}", code="InvalidSpec", remedy="; ".join(found) or None)


def encoder_for(inputs: Inputs, task: Task, form: DataFormat) -> RowEncoder:
    """What turns the rows of this task and format into token ids."""
    tokenizer, config = inputs.tokenizer, inputs.model.config
    if task == "sequence-classification":
        return ClassEncoder(tokenizer, read_at=config.eos_token_id if config.is_encoder_decoder else None)
    if task == "seq2seq-lm":
        return PairEncoder(tokenizer)
    data = inputs.config.spec.data
    return Encoder(tokenizer, form, data.loss_on or default_loss_on(form), data.template_arguments)
