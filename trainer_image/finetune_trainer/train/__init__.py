"""Train: the gang takes the planned steps, keeps the best checkpoint, and measures base against tuned."""

from __future__ import annotations

from finetune_trainer.stage import StageContext


def run(context: StageContext) -> None:
    from finetune_trainer.train.run import run_training  # torch and its friends take seconds to import

    run_training(context)
