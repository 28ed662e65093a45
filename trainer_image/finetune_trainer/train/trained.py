"""What `trained/` holds, and whether this run left it there before. Imports no torch: a finished run must be known at once."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from finetune_api.contract import TerminationMessage

from finetune_trainer import sealed
from finetune_trainer.stage import StageContext

KIND = "trained"
FORMAT = 1
MODEL = "model"
EVALUATION = "evaluation.json"

_NOTED = ("step", "resumed_from_step", "last_checkpoint", "metrics", "evaluation")


def recorded(context: StageContext, folder: Path, hashes: Collection[str]) -> bool:
    """Whether this run was finished before; then its result is noted for the termination message."""
    manifest = sealed.read_manifest(folder)
    if manifest is None or manifest.get("kind") != KIND or manifest.get("config_hash") not in hashes:
        return False
    word = TerminationMessage.model_validate(manifest["word"])
    context.note(**{name: getattr(word, name) for name in _NOTED})
    context.progress.update(percent=100.0, step=word.step or 0, total_steps=word.step or 0, force=True)
    return True
