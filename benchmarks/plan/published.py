"""What others say fits where, or reached what, against the planner: which hold, and up to which length."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from finetune_api.combinations import refused
from finetune_api.effective import resolve
from finetune_api.planner.estimate import capacity_of, estimate
from finetune_api.planner.facts import DataFacts, ModelShape, PlanFacts
from finetune_api.planner.fit import ways
from finetune_api.planner.shape import shape_of
from finetune_api.spec import FineTuneJobSpec

LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_LLAMA = {"model_type": "llama", "tie_word_embeddings": False}

MODELS: dict[str, ModelShape] = {
    "Llama-2-7B": shape_of(_LLAMA | {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32000}),
    "Llama-2-13B": shape_of(_LLAMA | {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40, "vocab_size": 32000}),
    "Llama-3.2-3B": shape_of(_LLAMA | {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "tie_word_embeddings": True}),
    "Llama-3-8B": shape_of(_LLAMA | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256}),
    "Llama-3-70B": shape_of(_LLAMA | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256}),
    "Qwen2.5-7B": shape_of({"model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False}),
}  # fmt: skip


@dataclass(frozen=True)
class Claim:
    """That a method on a model fits on so many GPUs."""

    said: str
    model: str
    method: str
    gpu: str
    gpus: int = 1


CLAIMS = (
    Claim("7B LoRA 4-bit on 16 GB", "Llama-2-7B", "qlora", "t4"),
    Claim("13B LoRA 4-bit on 24 GB", "Llama-2-13B", "qlora", "rtx-4090"),
    Claim("70B QLoRA on one 80 GB", "Llama-3-70B", "qlora", "h100"),
    Claim("7B full on 8x80 GB", "Llama-2-7B", "full", "a100-80gb", 8),
)


@dataclass(frozen=True)
class Recipe:
    """A published run: rows of `length` tokens, `rows` of them a step on each GPU. `tokens_per_second` of one GPU."""

    said: str
    model: str
    method: str
    gpu: str
    length: int
    rows: int
    gpus: int = 1
    training: dict[str, Any] = field(default_factory=dict)
    tokens_per_second: float | None = None
    gib: float | None = None


RECIPES = (
    Recipe("NeMo AutoModel, Llama3-8B LoRA, H100", "Llama-3-8B", "lora", "h100", 4096, 2, tokens_per_second=12473),
    Recipe("NeMo AutoModel, Qwen2.5-7B LoRA, H100", "Qwen2.5-7B", "lora", "h100", 4096, 2, tokens_per_second=14110),
    Recipe("NeMo AutoModel, Llama3-70B LoRA, 8 H100", "Llama-3-70B", "lora", "h100", 4096, 1, 8, tokens_per_second=1092),
    Recipe("torchtitan, Llama3.1-8B full, 8 H100, eager", "Llama-3-8B", "full", "h100", 8192, 2, 8, {"activationCheckpointing": "selective"}, 5762),
    Recipe("torchtune, Llama3.2-3B full, A100, packed", "Llama-3.2-3B", "full", "a100-80gb", 4096, 2, training={"optimizer": "adamw-8bit"}, tokens_per_second=7075),
    Recipe("torchtune, Llama3.2-3B LoRA, A100", "Llama-3.2-3B", "lora", "a100-80gb", 4096, 2, training={"activationCheckpointing": "full"}, tokens_per_second=8210, gib=8.5),
    Recipe("torchtune, Llama3.2-3B QLoRA, A100", "Llama-3.2-3B", "qlora", "a100-80gb", 4096, 2, training={"activationCheckpointing": "full"}, tokens_per_second=8035, gib=4.6),
)  # fmt: skip


def job(model: str, method: str, gpu: str, gpus: int, **groups: Any) -> FineTuneJobSpec:
    place = {"uri": f"pvc://models/{model}"}
    return FineTuneJobSpec.model_validate(
        {
            "model": place,
            "method": {"type": method},
            "data": {"train": [place]},
            "compute": {"gpusPerNode": gpus, "gpuType": gpu},
            "workspace": {"uri": "pvc://scratch"},
            "output": place,
            **groups,
        }
    )


def facts(model: str, rows: int, length: int) -> PlanFacts:
    """All tokens are trained, as in the published runs."""
    data = DataFacts(rows=rows, tokens=rows * length, trained_tokens=rows * length, longest=length)
    return PlanFacts(model=MODELS[model], data=data)


@dataclass(frozen=True)
class Held:
    """Longest rows that fit, with nothing computed again and with whatever it takes; 0: none of LENGTHS."""

    claim: Claim
    rows_a_step: int
    plain: int
    longest: int
    gib: float


def hold(claim: Claim, rows_a_step: int) -> Held:
    """With `rows_a_step` rows on each GPU in a step."""
    plain = longest = 0
    least = 0.0
    for length in LENGTHS:
        training = {"globalBatchSize": rows_a_step * claim.gpus}
        spec = resolve(job(claim.model, claim.method, claim.gpu, claim.gpus, training=training))
        known = facts(claim.model, 1000, length)
        capacity = capacity_of(spec)
        assert capacity is not None
        usual = resolve(spec, decided={})
        usual.compute.micro_batch_tokens = None
        fitting = [way for way in ways(usual, known) if way.memory.total <= capacity]
        if any(way.checkpointing == "none" for way in fitting):
            plain = length
        if fitting:
            longest = length
            least = min(way.memory.total for way in fitting) / 2**30
    return Held(claim, rows_a_step, plain, longest, round(least, 1))


def expected(recipe: Recipe) -> tuple[float, float]:
    """Tokens a second of one GPU, and GiB of one, as planned: the fastest way that fits, or the usual one."""
    training = {"globalBatchSize": recipe.rows * recipe.gpus, **recipe.training}
    known = facts(recipe.model, 64 * recipe.gpus, recipe.length)
    from finetune_api.planner.decide import decide

    spec = job(recipe.model, recipe.method, recipe.gpu, recipe.gpus, training=training)
    whole = resolve(spec, decided=decide(spec, known)[0])
    assert not any(refused(whole))
    made = estimate(whole, known)
    return made.duration.tokens_per_second / recipe.gpus, made.memory.total / 2**30
