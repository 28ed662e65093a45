"""The task of a run, as prepare decided it."""

from __future__ import annotations

from finetune_trainer.data.shards import Shards
from finetune_trainer.tasks.base import Task
from finetune_trainer.tasks.causal import CausalTask


def task_of(shards: Shards) -> Task:
    """By `resolved.task` of the shards' manifest."""
    return CausalTask(pad=shards.tokenizer["pad"])
