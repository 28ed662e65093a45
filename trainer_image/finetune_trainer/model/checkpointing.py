"""Activation checkpointing: activations of a block are computed again in the backward instead of being kept."""

from __future__ import annotations

import functools
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from finetune_trainer.errors import BadInput
from finetune_trainer.model.wrapped import innermost

Kind = Literal["none", "selective", "full"]

_ATTENTION = (
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "torch_attn::_varlen_attn",
)
"""Whose outputs `selective` keeps: the dearest to compute again for what they weigh."""


def checkpoint_activations(model: nn.Module, kind: Kind) -> None:
    """Switch it on for every block of a transformers model (also inside peft's). `none` leaves the model alone.

    Non-reentrant, so that gradients flow where only adapters inside the blocks are trained, and hooks of engines fire once.
    Raises BadInput (InvalidSpec) when the model's code does not know checkpointing.
    """
    if kind == "none":
        return
    how: dict[str, Any] = {"use_reentrant": False}
    if kind == "selective":
        how["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)
    inner = innermost(model)
    if not getattr(inner, "supports_gradient_checkpointing", False):
        raise BadInput(
            f"training.activationCheckpointing: {type(inner).__name__} cannot compute its activations again",
            code="InvalidSpec",
            remedy="set activationCheckpointing: none",
        )
    inner.activation_checkpointing_enable(activation_checkpointing_kwargs=how)


def _policy(_: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    name = operator.name() if isinstance(operator, torch._ops.OpOverload) else str(operator)
    kept = name.split(".")[0] in _ATTENTION
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
