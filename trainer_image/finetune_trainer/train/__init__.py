"""Train: the gang takes the planned steps, keeps the best checkpoint, and measures base against tuned."""

from __future__ import annotations

from finetune_trainer import lean
from finetune_trainer.stage import StageContext
from finetune_trainer.train import fence
from finetune_trainer.train.identity import same_result
from finetune_trainer.train.trained import recorded


def run(context: StageContext) -> None:
    """The stage, in each rank's own process. Raises StageError; returns when `trained/` is sealed."""
    layout = context.config.layout
    if recorded(context, layout.trained, same_result(context.config.spec)):
        print("this run was trained and measured before; its result is kept", flush=True)
        return
    fence.refuse_superseded(layout.fence, context.config.attempt)
    lean.list_models_once()
    from finetune_trainer.train.training import run_training  # torch and its friends take seconds to import

    run_training(context)
