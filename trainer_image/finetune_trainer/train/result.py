"""`trained/`: what a finished training leaves for publish, sealed."""

from __future__ import annotations

from pathlib import Path

from finetune_trainer import sealed
from finetune_trainer.stage import StageContext


def recorded(context: StageContext, folder: Path, run_hash: str) -> bool:
    """Whether this run was finished before; then its result is noted for the termination message."""
    manifest = sealed.read_manifest(folder)
    if manifest is None or manifest.get("config_hash") != run_hash:
        return False
    context.note(**manifest["noted"])
    return True
