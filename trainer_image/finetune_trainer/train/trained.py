"""What `trained/` holds, and whether this run left it there before. Imports no torch: a finished run must be known at once."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from finetune_api.contract import TerminationMessage
from finetune_api.status import EvaluationStatus, MetricRow

from finetune_trainer import sealed
from finetune_trainer.stage import StageContext

KIND = "trained"
FORMAT = 1
MODEL = "model"
EVALUATION = "evaluation.json"

_NOTED = (
    "step", "resumed_from_step", "last_checkpoint", "checkpoint_seconds", "step_seconds", "metrics", "evaluation",
)  # fmt: skip


def status_of(evaluation: dict[str, Any]) -> EvaluationStatus:
    return EvaluationStatus(
        rows=evaluation["rows"],
        generated_rows=evaluation.get("generatedRows"),
        metrics=[MetricRow(**row) for row in evaluation["metrics"]],
    )


def sealed_evaluation(folder: Path) -> EvaluationStatus | None:
    """Of the sealed result in `folder`; None where there is none."""
    try:
        return status_of(json.loads((folder / EVALUATION).read_bytes()))
    except (OSError, ValueError, KeyError):
        return None


def recorded(context: StageContext, folder: Path, hashes: Collection[str]) -> bool:
    """Whether this run was finished before; then its result is noted for the termination message."""
    manifest = sealed.read_manifest(folder)
    if manifest is None or manifest.get("kind") != KIND or manifest.get("config_hash") not in hashes:
        return False
    word = TerminationMessage.model_validate(manifest["word"])
    context.note(**{name: getattr(word, name) for name in _NOTED})
    context.progress.update(percent=100.0, step=word.step or 0, total_steps=word.step or 0, force=True)
    return True
