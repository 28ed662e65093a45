"""Trainings whose peak memory is measured on a CPU: small enough to run here, large enough that the interpreter does not decide."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

VOCABULARY = 8192

SHAPES: dict[str, dict[str, Any]] = {
    # 17 million parameters, llama's blocks with grouped attention
    "llama-17m": {
        "model_type": "llama", "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8,
        "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 4096, "tie_word_embeddings": True,
    },
    # 46 million
    "llama-46m": {
        "model_type": "llama", "hidden_size": 640, "intermediate_size": 1728, "num_hidden_layers": 8,
        "num_attention_heads": 10, "num_key_value_heads": 5, "max_position_embeddings": 4096, "tie_word_embeddings": False,
    },
    # 31 million, norms on queries and keys
    "qwen3-31m": {
        "model_type": "qwen3", "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    },
    # 29 million, no gate, dropout, learnt positions
    "gpt2-29m": {"model_type": "gpt2", "n_embd": 512, "n_layer": 8, "n_head": 8, "n_positions": 1024},
    # 32 million, four norms a layer, capped logits
    "gemma2-32m": {
        "model_type": "gemma2", "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "sliding_window": 1024,
        "max_position_embeddings": 4096, "query_pre_attn_scalar": 64,
    },
    # 3 million, for timing
    "llama-3m": {
        "model_type": "llama", "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4,
        "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 4096, "tie_word_embeddings": True,
    },
    # 0.3 million: what a training takes beside its model
    "nothing": {
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "max_position_embeddings": 4096, "tie_word_embeddings": True,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """`rows` of `length` tokens a step, over `processes`. `method` and `training` are parts of a spec."""

    shape: str
    method: dict[str, Any]
    length: int
    rows: int
    strategy: str = "ddp"
    processes: int = 1
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        parts = [self.shape, self.method["type"], f"{self.rows}x{self.length}"]
        if self.processes > 1 or self.strategy != "ddp":
            parts.append(f"{self.strategy} over {self.processes}")
        if lora := self.method.get("lora"):
            parts.append(" ".join(f"{name} {value}" for name, value in lora.items()))
        parts += [f"{value}" if name != "activationCheckpointing" else f"recomputes {value}" for name, value in self.training.items()]  # fmt: skip
        return ", ".join(parts)


FULL, LORA = {"type": "full"}, {"type": "lora", "lora": {"rank": 16}}

CASES: tuple[Case, ...] = (
    # methods, one micro-batch a step
    Case("llama-17m", FULL, 512, 4),
    Case("llama-17m", LORA, 512, 4),
    Case("llama-46m", FULL, 512, 4),
    Case("llama-46m", LORA, 512, 4),
    Case("llama-46m", {"type": "dora", "lora": {"rank": 16}}, 512, 4),
    Case("llama-46m", {"type": "prompt"}, 512, 3),
    Case("llama-46m", {"type": "prefix"}, 512, 3),
    Case("llama-46m", {"type": "lora", "lora": {"rank": 128}}, 512, 4),
    Case("llama-46m", {"type": "lora", "lora": {"rank": 16, "modulesToSave": ["lm_head"]}}, 512, 4),
    Case("llama-46m", {"type": "full", "freeze": {"allButLast": 2}}, 512, 4),
    # lengths and micro-batches
    Case("llama-46m", FULL, 128, 4),
    Case("llama-46m", FULL, 128, 64),
    Case("llama-46m", FULL, 2048, 2),
    Case("llama-46m", FULL, 3000, 1),
    Case("llama-46m", LORA, 128, 4),
    Case("llama-46m", LORA, 128, 64),
    Case("llama-46m", LORA, 2048, 1),
    # activation checkpointing
    Case("llama-46m", FULL, 512, 4, training={"activationCheckpointing": "full"}),
    Case("llama-46m", FULL, 512, 4, training={"activationCheckpointing": "selective"}),
    Case("llama-46m", LORA, 512, 4, training={"activationCheckpointing": "full"}),
    Case("llama-46m", LORA, 512, 4, training={"activationCheckpointing": "selective"}),
    # optimizers
    Case("llama-46m", FULL, 128, 4, training={"optimizer": "adafactor"}),
    Case("llama-46m", FULL, 128, 4, training={"optimizer": "muon"}),
    Case("llama-46m", FULL, 128, 4, training={"ema": 0.99}),
    # strategies
    Case("llama-46m", FULL, 256, 4, "ddp", 2),
    Case("llama-46m", FULL, 256, 4, "zero1", 2),
    Case("llama-46m", FULL, 256, 4, "zero2", 2),
    Case("llama-46m", FULL, 256, 4, "zero3", 2),
    Case("llama-46m", FULL, 256, 4, "fsdp2", 2),
    Case("llama-46m", LORA, 256, 4, "ddp", 2),
    Case("llama-46m", LORA, 256, 4, "zero2", 2),
    Case("llama-46m", LORA, 256, 4, "zero3", 2),
    Case("llama-46m", LORA, 256, 4, "fsdp2", 2),
    # families
    Case("qwen3-31m", FULL, 512, 4),
    Case("qwen3-31m", LORA, 512, 4),
    Case("gpt2-29m", FULL, 512, 4),
    Case("gpt2-29m", LORA, 512, 4),
    Case("gemma2-32m", FULL, 512, 4),
    Case("gemma2-32m", LORA, 512, 4),
)  # fmt: skip
