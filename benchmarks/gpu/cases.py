"""Models of the real shapes, rows for them, and the arithmetic of utilisation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bf16, by a word in the device's name."""

_LLAMA_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
}
_LLAMA_3B = _LLAMA_8B | {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "tie_word_embeddings": True,
}
_TINY = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


@dataclass(frozen=True)
class Case:
    """`method` is lora, qlora or full; a pack has `pack` tokens, a step `packs` of them. `goal` is a share of the peak."""

    name: str
    method: str
    shape: dict[str, Any]
    pack: int = 4096
    packs: int = 4
    goal: float = 0.45

    def tiny(self) -> Case:
        """The same on a CPU, to see that it runs."""
        return Case(self.name, self.method, _TINY, pack=256, packs=2, goal=self.goal)


CASES = {
    case.name: case
    for case in (
        Case("lora-8b", "lora", _LLAMA_8B),
        Case("qlora-8b", "qlora", _LLAMA_8B, goal=0.40),
        Case("full-3b", "full", _LLAMA_3B),
    )
}


def build(case: Case, device: torch.device) -> nn.Module:
    """The base: weights drawn on the device, float32 where all of them are trained, else bf16, or 4 bits on top of that."""
    from transformers import LlamaConfig, LlamaForCausalLM

    dtype = torch.float32 if case.method == "full" or device.type == "cpu" else torch.bfloat16
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(LlamaConfig(**case.shape, pad_token_id=0, bos_token_id=1, eos_token_id=2))
    finally:
        torch.set_default_dtype(before)
    if case.method == "qlora":
        _quantise(model, device, dtype)
    return model


def _quantise(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Each linear layer but the head to NF4 with double quantisation, one after the other: never two copies of the whole."""
    import bitsandbytes as bnb
    from transformers import BitsAndBytesConfig
    from transformers.quantizers import AutoHfQuantizer

    linear = [(name, m) for name, m in model.named_modules() if type(m) is nn.Linear and name != "lm_head"]
    for name, old in linear:
        new = bnb.nn.Linear4bit(
            old.in_features,
            old.out_features,
            bias=False,
            compute_dtype=dtype,
            quant_type="nf4",
            compress_statistics=True,
        )
        new.weight = bnb.nn.Params4bit(old.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, new.to(device))
    model.is_loaded_in_4bit = model.is_quantized = True
    model.config.quantization_config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model.hf_quantizer = AutoHfQuantizer.from_config(model.config.quantization_config)  # what Trainer asks


def write_rows(folder: Path, case: Case, steps: int) -> Any:
    """Shards of made-up rows: lengths as in chats (log-normal, mean about 350 tokens, at most a pack), half of each trained."""
    from finetune_trainer.data.shards import Split, SplitWriter

    draw = np.random.default_rng(0)
    wanted, written = int(steps * case.pack * case.packs * 1.05), 0
    with SplitWriter(folder, "train") as out:
        while written < wanted:
            length = int(np.clip(draw.lognormal(np.log(case.pack / 15), 0.7), 8, case.pack // 2))
            ids = draw.integers(3, case.shape["vocab_size"], size=length)
            prompt = length // 2
            out.append(ids, np.arange(length) >= prompt, prompt_length=prompt, source=(0, 1, 0, 0))
            written += length
    return Split(folder, "train", ["rows"])


def steps_of(split: Any, case: Case) -> list[np.ndarray]:
    """Rows of each optimizer step: as many as fill its packs, in order."""
    steps: list[list[int]] = [[]]
    tokens = 0
    for row, length in enumerate(split.lengths().tolist()):
        if tokens + length > case.pack * case.packs:
            steps.append([])
            tokens = 0
        steps[-1].append(row)
        tokens += length
    return [np.array(rows) for rows in steps[:-1]]


def flops(model: nn.Module, lengths: np.ndarray, *, full: bool) -> float:
    """Model FLOPs of a step over rows of these lengths, recomputation not counted.

    Matrices: 2 N a token forward, 2 N for the gradients of activations, and 2 N for those of weights where all are
    trained; N counts every linear layer, the head too, not the embeddings nor the adapters. Attention: 4 L H sum(len^2)
    forward, half of it since it is causal, and twice that backward; H is heads times their size.
    """
    config = model.config
    n = sum(
        m.in_features * m.out_features
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear) and "lora_" not in name and not hasattr(m, "base_layer")
    )
    heads = config.num_attention_heads * config.head_dim
    matrices = (6 if full else 4) * n * float(lengths.sum())
    return matrices + 6 * config.num_hidden_layers * heads * float((lengths.astype(np.float64) ** 2).sum())
