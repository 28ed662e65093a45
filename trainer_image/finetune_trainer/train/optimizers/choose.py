"""Which optimizer a name means."""

from __future__ import annotations

from torch import nn

from finetune_trainer.errors import BadInput
from finetune_trainer.train.optimizers.recipe import Recipe


def recipe_of(name: str, model: nn.Module) -> Recipe:
    """By `training.optimizer`. Raises BadInput (InvalidSpec) when this machine cannot run it."""
    if name == "adamw":
        from finetune_trainer.train.optimizers.adamw import AdamW

        return AdamW()
    if name == "adafactor":
        from finetune_trainer.train.optimizers.adafactor import Adafactor

        return Adafactor()
    if name == "muon":
        from finetune_trainer.train.optimizers.muon import Muon

        return Muon(model)
    try:
        from finetune_trainer.train.optimizers.bnb import BitsAndBytes

        return BitsAndBytes(name)
    except ImportError as error:
        raise BadInput(
            f"training.optimizer: {name} is bitsandbytes', which cannot be imported here: {error}",
            code="InvalidSpec",
            remedy="take optimizer adamw",
        ) from error
