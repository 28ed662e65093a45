"""`spec.method`: what is trained, and `spec.model`: of what."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from finetune_api.base import ApiModel
from finetune_api.location import Location
from finetune_api.rules import Rule, Ruled

Task = Literal["causal-lm", "seq2seq-lm", "sequence-classification"]
MethodType = Literal["lora", "qlora", "dora", "prefix", "prompt", "full"]
LOW_RANK: tuple[MethodType, ...] = ("lora", "qlora", "dora")
PROMPT_LEARNING: tuple[MethodType, ...] = ("prefix", "prompt")

ModuleName = Annotated[str, Field(min_length=1, max_length=128)]


class ModelSpec(Location):
    """The base model: a folder in Hugging Face layout on a claim, or a repository on a hub."""

    task: Task | None = Field(
        default=None,
        description="Absent: sequence-classification for data of that format, else what the model's config.json is made for.",
    )
    trust_remote_code: bool = Field(
        default=False,
        description="Run Python code that the model's repository brings. Only for code that you have read.",
    )


class LoraSpec(ApiModel):
    """Low-rank adapters (https://arxiv.org/abs/2106.09685)."""

    rank: int = Field(default=16, ge=1, le=1024, description="Rank of the update, r.")
    alpha: Annotated[float, Field(gt=0, le=4096)] | None = Field(
        default=None,
        description="Scale: the update is multiplied by alpha / rank (alpha / sqrt(rank) with rslora). Absent: 2 * rank.",
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    target_modules: list[ModuleName] | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        description="Names of the linear layers that get adapters, or [all-linear]. Absent: every linear layer but the output head; of a mixture of experts, those of attention.",
    )
    target_parameters: list[ModuleName] | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        description="Names of weights that are no linear layer's own, such as the fused experts of a mixture.",
    )
    modules_to_save: list[ModuleName] | None = Field(
        default=None,
        min_length=1,
        max_length=16,
        description="Modules that are trained whole and saved with the adapter, such as lm_head. A classification head always is.",
    )
    rslora: bool = Field(default=False, description="Scale by alpha / sqrt(rank) (https://arxiv.org/abs/2312.03732).")
    plus_ratio: Annotated[float, Field(ge=1, le=1024)] | None = Field(
        default=None,
        description="LoRA+: learning rate of B over that of A (https://arxiv.org/abs/2402.12354). Absent: 1.",
    )


class QuantizationSpec(ApiModel, Ruled):
    """How qlora holds the frozen weights, by bitsandbytes."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.bits == 4 || (!has(self.type) && !has(self.doubleQuant))",
            "method.quantization: type and doubleQuant belong to bits 4: remove them, or set bits: 4",
            lambda self: self.bits == 4 or (self.type is None and self.double_quant is None),
        ),
    )

    bits: Literal[4, 8] = Field(default=4, description="Bits of a weight.")
    type: Literal["nf4", "fp4"] | None = Field(default=None, description="4-bit data type. Absent: nf4.")
    double_quant: bool | None = Field(
        default=None, description="Quantise the 4-bit constants too, which saves 0.4 bits a weight. Absent: true."
    )


class PromptTuningSpec(ApiModel):
    """Virtual tokens before each row (prompt: https://arxiv.org/abs/2104.08691), or in every layer (prefix: https://arxiv.org/abs/2101.00190)."""

    virtual_tokens: int = Field(default=20, ge=1, le=4096, description="How many.")
    init_text: Annotated[str, Field(min_length=1, max_length=4096)] | None = Field(
        default=None,
        description="Text whose embeddings the virtual tokens of method prompt begin with. Absent: random ones.",
    )


class FreezeSpec(ApiModel, Ruled):
    """Layers that full fine-tuning leaves as they are. Layers are counted from 0."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.layers) != has(self.allButLast)",
            "method.freeze: give either layers or allButLast",
            lambda self: (self.layers is None) != (self.all_but_last is None),
        ),
    )

    layers: list[Annotated[int, Field(ge=0, le=4095)]] | None = Field(
        default=None, min_length=1, max_length=512, description="Layers to freeze; the embeddings are trained."
    )
    all_but_last: Annotated[int, Field(ge=0, le=4095)] | None = Field(
        default=None, description="Freeze the embeddings and all layers but the last ones, so many."
    )


def _belongs(field: str, *types: MethodType) -> Rule:
    """`method.FIELD` may stand there only for some types."""
    attribute = {"lora": "lora", "quantization": "quantization", "promptTuning": "prompt_tuning"}.get(field, field)
    names = ", ".join(f"'{name}'" for name in types)
    said = " or ".join((", ".join(types[:-1]), types[-1])) if len(types) > 1 else types[0]
    return Rule(
        f"!has(self.{field}) || self.type in [{names}]",
        f"method.{field} belongs to method.type {said}: remove it, or change the type",
        lambda self: getattr(self, attribute) is None or self.type in types,
    )


class MethodSpec(ApiModel, Ruled):
    """What is trained."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        _belongs("lora", *LOW_RANK),
        _belongs("quantization", "qlora"),
        _belongs("promptTuning", *PROMPT_LEARNING),
        _belongs("freeze", "full"),
        Rule(
            "!has(self.initFrom) || self.type != 'full'",
            "method.initFrom is an adapter to continue from: full fine-tuning has none, name the model in spec.model instead",
            lambda self: self.init_from is None or self.type != "full",
        ),
        Rule(
            "!has(self.initFrom) || (!has(self.lora) && !has(self.promptTuning))",
            "method.initFrom brings the adapter's own settings: remove method.lora and method.promptTuning",
            lambda self: self.init_from is None or (self.lora is None and self.prompt_tuning is None),
        ),
        Rule(
            "!has(self.promptTuning) || !has(self.promptTuning.initText) || self.type == 'prompt'",
            "method.promptTuning.initText belongs to method.type prompt: remove it",
            lambda self: not self.prompt_tuning or self.prompt_tuning.init_text is None or self.type == "prompt",
        ),
    )

    type: MethodType = Field(
        description="lora: small adapters next to a frozen model; qlora: the same with quantized weights; dora: with separate magnitudes; prefix and prompt: virtual tokens; full: every weight."
    )
    lora: LoraSpec | None = None
    quantization: QuantizationSpec | None = None
    prompt_tuning: PromptTuningSpec | None = None
    freeze: FreezeSpec | None = None
    init_from: Location | None = Field(
        default=None, description="An adapter in peft's layout, from here or elsewhere, that training continues from."
    )
