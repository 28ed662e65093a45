"""Absent means decided: from a spec and the platform's defaults to the spec that the stages run.

What needs the data or the model is decided by prepare, through `planner.decide`, and reaches status in its result;
everything else is decided here, before anything runs.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from finetune_api.base import ApiModel
from finetune_api.budget import Money
from finetune_api.combinations import refused
from finetune_api.compute import MICRO_BATCH_TOKENS, ComputeSpec, OffloadSpec, Strategy
from finetune_api.method import (
    LOW_RANK,
    PROMPT_LEARNING,
    LoraSpec,
    MethodSpec,
    MethodType,
    PromptTuningSpec,
    QuantizationSpec,
)
from finetune_api.pods import Pods, PodSettings, merge
from finetune_api.spec import FineTuneJobSpec


class PlatformDefaults(ApiModel):
    """The platform team's settings (chart value `trainer.defaults`): they lie beneath every job's own."""

    pods: PodSettings = Field(default_factory=PodSettings)
    gpu_hour_price: Money | None = Field(default=None, description="Of one GPU, in your currency.")
    gpu_type: str | None = Field(default=None, max_length=63, description="What most GPUs of the cluster are: h100 ...")
    max_pod_memory: Annotated[str, Field(max_length=16, pattern=r"^[1-9][0-9]*(Mi|Gi)$")] | None = Field(
        default=None,
        description="The most memory that the operator lets a pod request after it ran out: what the largest node can allocate. Absent: 4 times what the pod requested at first.",
    )
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(
        default=None,
        description="When a finished job's children are deleted (chart value `jobs.ttlSecondsAfterFinished`).",
    )


LEARNING_RATES: dict[MethodType, float] = {
    "lora": 2e-4, "qlora": 2e-4, "dora": 2e-4, "full": 2e-5, "prefix": 1e-2, "prompt": 1e-2
}  # fmt: skip
"""Of models of some billion parameters, where nothing is known of the model."""


def overlay(spec: FineTuneJobSpec, decided: dict[str, Any]) -> FineTuneJobSpec:
    """`spec` with what prepare `decided` in the places that are absent. Raises ValueError for a part that is no spec."""
    if not decided:
        return spec
    return FineTuneJobSpec.model_validate(_under(spec.wire(), decided))


def holding(spec: FineTuneJobSpec, decided: dict[str, Any]) -> dict[str, Any]:
    """What of `decided` still goes with `spec`: compute may have changed since, and what was decided of it then gives way."""
    return _laid(spec, decided)[1]


def _laid(spec: FineTuneJobSpec, decided: dict[str, Any]) -> tuple[FineTuneJobSpec, dict[str, Any]]:
    """`spec` over what of `decided` goes with it, and that part."""
    if "compute" in decided:
        try:
            laid = overlay(spec, decided)
            if not any(refused(laid.model_copy(update={"compute": compute(laid.compute)}))):
                return laid, decided
        except ValueError:
            pass
    held = {name: value for name, value in decided.items() if name != "compute"}
    return overlay(spec, held), held


def _under(above: dict[str, Any], below: dict[str, Any]) -> dict[str, Any]:
    merged = dict(above)
    for name, value in below.items():
        if name not in merged:
            merged[name] = value
        elif isinstance(value, dict) and isinstance(merged[name], dict):
            merged[name] = _under(merged[name], value)
    return merged


def resolve(
    spec: FineTuneJobSpec, defaults: PlatformDefaults | None = None, decided: dict[str, Any] | None = None
) -> FineTuneJobSpec:
    """The spec with every field decided that can be decided without model and data, and with what prepare `decided`.

    With `decided` (an empty one too) the spec is whole: what is in neither gets a usual value. Without it the fields that
    model and data decide stay absent. Pure; resolving twice changes nothing.
    """
    spec, _ = _laid(spec, decided or {})
    # Copied as far as it changes: a whole deep copy costs more than everything else that the operator does in a look.
    out = spec.model_copy(
        update={
            "compute": compute(spec.compute),
            "method": spec.method.model_copy(),
            "training": spec.training.model_copy(),
            "data": spec.data.model_copy(),
        }
    )
    if defaults is not None:
        _under_defaults(out, defaults)
    if decided is not None:
        _usual(out)
    _decide_method(out.method)
    training = out.training
    training.schedule = training.schedule or "cosine"
    if training.schedule == "wsd":
        training.decay_ratio = training.decay_ratio or 0.2
    training.optimizer = training.optimizer or "adamw"
    training.precision = training.precision or ("bf16" if out.compute.device == "cuda" else "fp32")
    out.data.overlong = out.data.overlong or "truncate"
    if out.compute.strategy is None:
        with_usual = out.model_copy(update={"compute": out.compute.model_copy(update={"strategy": _strategy(out)})})
        if decided is not None or any(refused(with_usual)):  # what no strategy can do is best said at once
            out.compute.strategy = with_usual.compute.strategy
    return out


def _under_defaults(spec: FineTuneJobSpec, defaults: PlatformDefaults) -> None:
    pods = spec.pods or Pods()
    spec.pods = pods.model_copy(update={"common": merge(defaults.pods, pods.common)})
    if spec.budget.gpu_hour_price is None and defaults.gpu_hour_price is not None:
        spec.budget = spec.budget.model_copy(update={"gpu_hour_price": defaults.gpu_hour_price})
    if spec.compute.gpu_type is None and spec.compute.device == "cuda":
        spec.compute.gpu_type = defaults.gpu_type
    if spec.ttl_seconds_after_finished is None:
        spec.ttl_seconds_after_finished = defaults.ttl_seconds_after_finished


def _usual(spec: FineTuneJobSpec) -> None:
    """Values for what model and data decide, where nobody knows them."""
    training, method = spec.training, spec.method
    if method.type in LOW_RANK and method.init_from is None:
        method.lora = method.lora or LoraSpec()
    if training.max_steps is None and training.epochs is None:
        training.epochs = 3
    training.global_batch_size = training.global_batch_size or 16
    training.learning_rate = training.learning_rate or LEARNING_RATES[method.type]
    training.warmup_ratio = 0.03 if training.warmup_ratio is None else training.warmup_ratio
    training.activation_checkpointing = training.activation_checkpointing or "none"
    usual = MICRO_BATCH_TOKENS[spec.compute.device or "cuda"]
    spec.compute.micro_batch_tokens = spec.compute.micro_batch_tokens or usual


def _decide_method(method: MethodSpec) -> None:
    """An adapter to go on from brings its own settings."""
    if method.lora is not None:
        method.lora = method.lora.model_copy()
        method.lora.alpha = method.lora.alpha or 2.0 * method.lora.rank
    if method.type == "qlora":
        quantization = method.quantization.model_copy() if method.quantization is not None else QuantizationSpec()
        if quantization.bits == 4:
            quantization.type = quantization.type or "nf4"
            quantization.double_quant = True if quantization.double_quant is None else quantization.double_quant
        method.quantization = quantization
    if method.type in PROMPT_LEARNING and method.init_from is None:
        method.prompt_tuning = method.prompt_tuning or PromptTuningSpec()


def compute(spec: ComputeSpec) -> ComputeSpec:
    """Device and processes of a gang."""
    device = spec.device or ("cpu" if spec.gpus_per_node == 0 else "cuda")
    gpus = 0 if device == "cpu" else spec.gpus_per_node or 1
    return spec.model_copy(
        update={"device": device, "gpus_per_node": gpus, "processes_per_node": spec.processes_per_node or max(gpus, 1)}
    )


def _strategy(spec: FineTuneJobSpec) -> Strategy:
    """The first that serves and that nothing else in the spec rules out."""
    offload = spec.compute.offload or OffloadSpec()
    if offload.parameters not in (None, "none") or offload.optimizer == "nvme":
        preferred: tuple[Strategy, ...] = ("zero3", "fsdp2")
    elif offload.optimizer == "cpu":
        preferred = ("zero2", "zero3", "fsdp2")
    elif spec.compute.nodes * (spec.compute.processes_per_node or 1) > 1:
        preferred = ("zero2", "ddp", "fsdp2")
    else:
        preferred = ("ddp", "zero2", "fsdp2")
    for strategy in preferred:
        compute = spec.compute.model_copy(update={"strategy": strategy})
        if not any(refused(spec.model_copy(update={"compute": compute}))):
            return strategy
    return preferred[0]


def shown(spec: FineTuneJobSpec) -> dict[str, Any]:
    """What `status.state` holds as `effective`: the decided spec without pods and switches."""
    wire = spec.wire()
    return {
        name: wire[name]
        for name in ("model", "method", "data", "training", "compute", "checkpoint", "evaluation", "budget", "retry")
        if name in wire
    }
