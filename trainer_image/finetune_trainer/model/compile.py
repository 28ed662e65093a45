"""torch.compile of each block of a model: one graph serves all layers, and everything around them stays as it is."""

from __future__ import annotations

import torch
from torch import nn

from finetune_trainer.compiler import check_compiler
from finetune_trainer.errors import BadInput


def compile_blocks(model: nn.Module, device: torch.device, *, backend: str = "inductor") -> int:
    """Compile the repeated blocks in place, for rows of any length; how many there are.

    Raises BadInput (InvalidSpec) when there is no compiler for the code that torch writes, or no block is found.
    """
    check_compiler(device.type)
    blocks = blocks_of(model)
    if not blocks:
        raise BadInput(
            f"training.compile: no repeated layers were found in {type(model).__name__}",
            code="InvalidSpec",
            remedy="remove training.compile",
        )
    for block in blocks:
        block.compile(dynamic=True, backend=backend)
    return len(blocks)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The repeated layers: what transformers itself would checkpoint one by one."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [
        layer
        for layers in model.modules()
        if isinstance(layers, nn.ModuleList)
        for layer in layers
        if isinstance(layer, GradientCheckpointingLayer)
    ]
