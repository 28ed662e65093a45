"""peft's words for methods and tasks."""

from __future__ import annotations

from typing import Any

from finetune_trainer.model.purpose import Purpose

ADAPTER = "default"
"""peft's name for a model's only adapter. It is part of the names of weights, but not of the files."""


def task_type(purpose: Purpose) -> Any:
    """peft's TaskType."""
    from peft import TaskType

    return {
        "causal-lm": TaskType.CAUSAL_LM,
        "seq2seq-lm": TaskType.SEQ_2_SEQ_LM,
        "sequence-classification": TaskType.SEQ_CLS,
    }[purpose.task]
