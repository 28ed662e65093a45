"""Frozen weights in 4 or 8 bits, by bitsandbytes."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from finetune_api.spec import FineTuneJobSpec
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert

from finetune_trainer.model import heads

log = logging.getLogger("finetune.model")

_BLOCK = 64
"""Weights of 4 bits share a scale in blocks of so many."""


def config(spec: FineTuneJobSpec, compute: torch.dtype, *, whole: Sequence[str]) -> BitsAndBytesConfig:
    """For `method.quantization`, computing in `compute`. Modules named in `whole` stay as they are."""
    asked = spec.method.quantization
    if _bits(spec) == 8:
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)  # one line for every layer
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(whole))
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=(asked.type if asked is not None else None) or "nf4",
        bnb_4bit_use_double_quant=asked is None or asked.double_quant is not False,
        bnb_4bit_compute_dtype=compute,
        llm_int8_skip_modules=list(whole),
    )


def left_whole(
    skeleton: PreTrainedModel, spec: FineTuneJobSpec, *, classifies: bool, trained: Sequence[str]
) -> list[str]:
    """Names of modules of a model without weights that must not be quantised: its head, what is tied to the embeddings, and what is `trained` whole.

    With 4 bits on a CPU also layers whose rows are no whole number of blocks: bitsandbytes (0.50) reads those back with the scales
    of other blocks there, silently.
    """
    # The library knows output embeddings, but of a classifier's head only the last weight.
    own = heads.modules(skeleton) + heads.poolers(skeleton) if classifies else get_keys_to_not_convert(skeleton)
    if spec.compute.device == "cpu" and _bits(spec) == 4:
        own += [name for name, module in skeleton.named_modules() if _row_length(module) % _BLOCK]
    return sorted({*own, *trained})


def keep_as_stored(model: nn.Module) -> None:
    """On CPUs with AVX512-BF16, bitsandbytes (0.50) lays 4-bit weights out anew, in place, at the first forward pass that needs no
    gradient, and computes in bf16 from then on: training could not go on from there, layers whose outputs are no multiple
    of 32 raise an AssertionError, and results would differ from machine to machine. So it is told that the CPU has none."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def tell_what_is_left(model: nn.Module) -> None:
    """Say so when most of a model could not be quantised, such as a mixture's fused experts."""
    whole = sum(p.numel() for p in model.parameters() if p.is_floating_point())
    total = sum(stored_elements(p) for p in model.parameters())
    if 2 * whole > total:
        log.warning(
            "%.0f%% of the weights are in no linear layer that bitsandbytes can quantise, and stay as they are; method lora trains the same in less time.",
            100 * whole / total,
        )


def stored_elements(parameter: nn.Parameter) -> int:
    """How many weights a parameter holds; two of 4 bits share a byte."""
    state = getattr(parameter, "quant_state", None)
    return state.shape.numel() if state is not None else parameter.numel()


def _bits(spec: FineTuneJobSpec) -> int:
    return spec.method.quantization.bits if spec.method.quantization is not None else 4


def _row_length(module: nn.Module) -> int:
    """Inputs of a linear layer; 0 for any other module."""
    if isinstance(module, nn.Linear):
        return module.in_features
    return module.weight.shape[0] if isinstance(module, Conv1D) else 0
