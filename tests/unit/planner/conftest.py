"""Jobs and facts that plans are made from."""

from __future__ import annotations

from typing import Any

from finetune_api.planner.facts import DataFacts, ModelShape, PlanFacts
from finetune_api.planner.shape import shape_of
from finetune_api.spec import FineTuneJobSpec

LLAMA = {"model_type": "llama", "tie_word_embeddings": False, "vocab_size": 32000}
SHAPES: dict[str, ModelShape] = {
    "toy": shape_of(LLAMA | {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512}),
    "1b": shape_of(LLAMA | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True}),
    "7b": shape_of(LLAMA | {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}),
    "8b": shape_of(LLAMA | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256}),
    "70b": shape_of(LLAMA | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256}),
    "moe": shape_of({"model_type": "qwen3_moe", "hidden_size": 2048, "moe_intermediate_size": 768, "intermediate_size": 6144, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "vocab_size": 151936, "tie_word_embeddings": False}),
}  # fmt: skip


def job(method: str | dict[str, Any] = "lora", **groups: Any) -> FineTuneJobSpec:
    """As a user writes it, on one H100 unless `compute` says otherwise. `method`: its type, or all of it."""
    place = {"uri": "pvc://claim/x"}
    body: dict[str, Any] = {
        "model": place,
        "method": {"type": method} if isinstance(method, str) else method,
        "data": {"train": [place]},
        "compute": {"gpusPerNode": 1, "gpuType": "h100"},
        "workspace": {"uri": "pvc://scratch"},
        "output": place,
    }
    return FineTuneJobSpec.model_validate(body | groups)


def facts(model: str | ModelShape = "8b", rows: int = 2000, length: int = 512, **more: Any) -> PlanFacts:
    """`rows` of `length` tokens each, half of which are trained."""
    shape = SHAPES[model] if isinstance(model, str) else model
    data = {"rows": rows, "tokens": rows * length, "trained_tokens": rows * length // 2, "longest": length}
    return PlanFacts(model=shape, data=DataFacts(**(data | more.pop("data", {}))), **more)
