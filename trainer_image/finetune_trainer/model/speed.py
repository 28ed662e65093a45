"""What is done to an adapted model before an engine takes it, so that it trains faster or in less memory."""

from __future__ import annotations

import torch
from finetune_api.spec import FineTuneJobSpec
from torch import nn

from finetune_trainer.model.checkpointing import checkpoint_activations
from finetune_trainer.model.compile import compile_blocks


def speed_up(model: nn.Module, spec: FineTuneJobSpec, device: torch.device) -> None:
    """Activation checkpointing and compilation as `spec.training` has them. Raises BadInput where the model or the image cannot."""
    checkpoint_activations(model, spec.training.activation_checkpointing or "none")
    if spec.training.compile:
        compile_blocks(model, device)
