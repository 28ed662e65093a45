"""bf16 compute for models whose trained weights stay fp32."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn


def computes_in_bf16(model: nn.Module, device: torch.device) -> None:
    """From now on the model's forward runs under autocast, whoever calls it: training, validation, generation."""
    for module in model.modules():
        # peft casts the input of each adapter to fp32, and autocast casts it back: a copy for each adapted layer.
        if hasattr(module, "lora_A") and not any(module.use_dora.values()):  # magnitudes are better in fp32
            module.cast_input_dtype_enabled = False
    forward = model.forward

    @functools.wraps(forward)  # transformers looks at its arguments
    def mixed(*args: Any, **kwargs: Any) -> Any:
        # Its cache would keep the copies of all weights until the forward's end, also those that are made again for a
        # block whose activations are. Where none are, the graph keeps them anyway.
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            return forward(*args, **kwargs)

    model.forward = mixed  # type: ignore[method-assign]
