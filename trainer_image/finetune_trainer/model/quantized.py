"""Frozen weights in 4 or 8 bits, by bitsandbytes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from finetune_api.spec import FineTuneJobSpec
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.quantizers.base import get_keys_to_not_convert

from finetune_trainer.model import heads


def config(spec: FineTuneJobSpec, compute: torch.dtype, *, whole: Sequence[str]) -> BitsAndBytesConfig:
    """For `method.quantization`, computing in `compute`. Modules named in `whole` stay as they are."""
    asked = spec.method.quantization
    bits = asked.bits if asked is not None else 4
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(whole))
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=(asked.type if asked is not None else None) or "nf4",
        bnb_4bit_use_double_quant=asked is None or asked.double_quant is not False,
        bnb_4bit_compute_dtype=compute,
        llm_int8_skip_modules=list(whole),
    )


def left_whole(skeleton: PreTrainedModel, *, classifies: bool, trained: Sequence[str]) -> list[str]:
    """Names of modules of a model without weights that must not be quantised: its head, what is tied to the embeddings, and what is `trained` whole."""
    # The library knows output embeddings, but of a classifier's head only the last weight.
    own = heads.modules(skeleton) + heads.poolers(skeleton) if classifies else get_keys_to_not_convert(skeleton)
    return sorted({*own, *trained})


def stored_elements(parameter: nn.Parameter) -> int:
    """How many weights a parameter holds; two of 4 bits share a byte."""
    state = getattr(parameter, "quant_state", None)
    return state.shape.numel() if state is not None else parameter.numel()
