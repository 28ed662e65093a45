"""Trainings of real models whose peak on a GPU is computed with tensors that have no values: shapes of their config.json, and cases."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MODELS: dict[str, dict[str, Any]] = {
    "Llama-3.2-1B": {"model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "tie_word_embeddings": True},
    "Llama-3.2-3B": {"model_type": "llama", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "tie_word_embeddings": True},
    "Llama-3.1-8B": {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False},
    "Llama-3.1-70B": {"model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False},
    "Qwen2.5-1.5B": {"model_type": "qwen2", "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True},
    "Qwen2.5-7B": {"model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False},
    "Qwen3-4B": {"model_type": "qwen3", "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True},
    "Qwen3-8B": {"model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": False},
    "Mistral-7B": {"model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 32768, "sliding_window": None, "tie_word_embeddings": False},
    "Gemma-2-2B": {"model_type": "gemma2", "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 256000, "sliding_window": 4096},
    "Gemma-3-1B": {"model_type": "gemma3_text", "hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 262144, "sliding_window": 512},
    "Phi-4": {"model_type": "phi3", "hidden_size": 5120, "intermediate_size": 17920, "num_hidden_layers": 40, "num_attention_heads": 40, "num_key_value_heads": 10, "vocab_size": 100352, "tie_word_embeddings": False, "pad_token_id": 0},
    "Mixtral-8x7B": {"model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "num_local_experts": 8, "num_experts_per_tok": 2, "tie_word_embeddings": False},
    "Qwen3-30B-A3B": {"model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "vocab_size": 151936, "tie_word_embeddings": False, "decoder_sparse_step": 1, "mlp_only_layers": []},
    "gpt-oss-20b": {"model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 24, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "num_local_experts": 32, "num_experts_per_tok": 4, "vocab_size": 201088, "sliding_window": 128, "tie_word_embeddings": False, "attention_bias": True},
}  # fmt: skip


@dataclass(frozen=True)
class GpuCase:
    """A step of `rows` rows of `length` tokens on one GPU, in micro-batches of at most `budget` tokens."""

    model: str
    method: str
    rows: int
    length: int
    training: dict[str, Any] = field(default_factory=dict)
    budget: int = 16384
    lora: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        parts = [self.model, self.method, f"{self.rows}x{self.length:,}"]
        if self.budget != 16384:
            parts.append(f"micro-batches of {self.budget:,}")
        parts += [f"{name} {value}" for name, value in (self.lora or {}).items()]
        parts += [f"recomputes {value}" if name == "activationCheckpointing" else f"{value}" for name, value in self.training.items()]  # fmt: skip
        return ", ".join(parts)


AGAIN, SELECTIVE = {"activationCheckpointing": "full"}, {"activationCheckpointing": "selective"}

GPU_CASES: tuple[GpuCase, ...] = (
    # full: fp32 weights under autocast
    GpuCase("Llama-3.2-1B", "full", 4, 2048),
    GpuCase("Llama-3.2-1B", "full", 8, 2048, budget=8192),
    GpuCase("Llama-3.2-1B", "full", 4, 2048, AGAIN),
    GpuCase("Llama-3.2-3B", "full", 2, 4096),
    GpuCase("Llama-3.2-3B", "full", 2, 4096, SELECTIVE),
    GpuCase("Llama-3.1-8B", "full", 1, 2048, {"optimizer": "adafactor"}),
    GpuCase("Llama-3.1-8B", "full", 4, 4096, AGAIN | {"optimizer": "adafactor"}),
    GpuCase("Qwen2.5-1.5B", "full", 2, 4096),
    GpuCase("Qwen3-4B", "full", 2, 4096),
    GpuCase("Gemma-2-2B", "full", 2, 2048),
    GpuCase("Gemma-3-1B", "full", 2, 4096),
    GpuCase("Qwen3-30B-A3B", "full", 1, 4096, AGAIN),
    # adapters beside weights in bf16
    GpuCase("Llama-3.2-1B", "lora", 8, 512),
    GpuCase("Llama-3.1-8B", "lora", 2, 4096),
    GpuCase("Llama-3.1-8B", "lora", 1, 8192, AGAIN),
    GpuCase("Llama-3.1-8B", "lora", 4, 1024, lora={"rank": 128}),
    GpuCase("Llama-3.1-8B", "dora", 1, 4096),
    GpuCase("Llama-3.1-70B", "lora", 1, 4096, AGAIN),
    GpuCase("Qwen2.5-7B", "lora", 16, 512),
    GpuCase("Qwen3-8B", "lora", 2, 4096),
    GpuCase("Mistral-7B", "lora", 2, 4096, SELECTIVE),
    GpuCase("Phi-4", "lora", 1, 4096),
    GpuCase("Gemma-2-2B", "lora", 2, 2048),
    GpuCase("Gemma-2-2B", "lora", 2, 4096, AGAIN),
    GpuCase("Mixtral-8x7B", "lora", 2, 4096),
    GpuCase("Qwen3-30B-A3B", "lora", 2, 4096),
    GpuCase("Qwen3-30B-A3B", "lora", 2, 4096, AGAIN),
    GpuCase("gpt-oss-20b", "lora", 4, 1024),
    GpuCase("gpt-oss-20b", "lora", 1, 4096),
    GpuCase("gpt-oss-20b", "lora", 1, 4096, AGAIN),
    # 4 bits
    GpuCase("Llama-3.1-8B", "qlora", 2, 4096),
    GpuCase("Llama-3.1-70B", "qlora", 1, 4096),
    GpuCase("Llama-3.1-70B", "qlora", 2, 4096, AGAIN),
    GpuCase("Qwen2.5-7B", "qlora", 4, 1024, SELECTIVE),
)  # fmt: skip
