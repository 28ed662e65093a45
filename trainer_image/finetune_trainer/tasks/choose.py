"""The task of a run, as prepare decided it."""

from __future__ import annotations

from finetune_trainer.data.shards import Shards
from finetune_trainer.tasks.base import Task
from finetune_trainer.tasks.causal import CausalTask
from finetune_trainer.tasks.classification import ClassificationTask
from finetune_trainer.tasks.seq2seq import Seq2SeqTask


def task_of(shards: Shards) -> Task:
    """By `resolved` of the shards' manifest."""
    pad = shards.tokenizer["pad"]
    if shards.task == "sequence-classification":
        segments = bool(shards.tokenizer.get("segments"))
        return ClassificationTask(pad=pad, multi_label=shards.multi_label, segments=segments)
    if shards.task == "seq2seq-lm":
        return Seq2SeqTask(pad=pad)
    return CausalTask(pad=pad)
