"""peft imports bitsandbytes wherever it is installed, and that imports torch's compiler: seconds for every rank.

A training that quantises nothing is spared that.
"""

from __future__ import annotations

import sys

from finetune_api.contract import RunConfig

from finetune_trainer import sources
from finetune_trainer.errors import StageError


def spare_bitsandbytes(config: RunConfig) -> None:
    """Before anything imports peft: to this process bitsandbytes is not installed, unless the training needs it."""
    if not _needed(config):
        sys.modules["bitsandbytes"] = None  # type: ignore[assignment]


def _needed(config: RunConfig) -> bool:
    spec = config.spec
    if spec.method.type == "qlora" or spec.method.quantization is not None:
        return True
    if spec.training.optimizer is None or "8bit" in spec.training.optimizer or "paged" in spec.training.optimizer:
        return True
    try:
        written = (sources.local(spec.model, config, field="spec.model.uri") / "config.json").read_bytes()
    except (StageError, OSError):
        return True  # whoever loads the model says what is wrong with it
    return b'"quantization_config"' in written
