"""Absent means decided: from a spec and the platform's defaults to the spec that the stages run.

Values that need the data or the model (lengths, checkpoint intervals) are decided by `prepare`, through
`planner.steps`, and reach status in its result; everything else is decided here, before anything runs.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from finetune_api.base import ApiModel
from finetune_api.budget import Money
from finetune_api.combinations import refused
from finetune_api.compute import ComputeSpec, OffloadSpec, Strategy
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


LEARNING_RATES: dict[MethodType, float] = {
    "lora": 2e-4, "qlora": 2e-4, "dora": 2e-4, "full": 2e-5, "prefix": 1e-2, "prompt": 1e-2
}  # fmt: skip


def overlay(spec: FineTuneJobSpec, decided: dict[str, Any]) -> FineTuneJobSpec:
    """`spec` with what prepare `decided` in the places that are absent. Raises ValueError for a part that is no spec."""
    if not decided:
        return spec
    return FineTuneJobSpec.model_validate(_under(spec.wire(), decided))


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
    """The spec with every field decided that can be decided without reading data, and with what prepare `decided`.

    Pure; resolving twice changes nothing.
    """
    spec = overlay(spec, decided or {})
    # Copied as far as it changes: a whole deep copy costs more than everything else that the operator does in a look.
    out = spec.model_copy(
        update={
            "compute": compute(spec.compute),
            "method": spec.method.model_copy(),
            "training": spec.training.model_copy(),
            "data": spec.data.model_copy(),
        }
    )
    _decide_method(out.method)
    training = out.training
    if training.max_steps is None and training.epochs is None:
        training.epochs = 3
    training.global_batch_size = training.global_batch_size or 16
    training.learning_rate = training.learning_rate or LEARNING_RATES[out.method.type]
    training.schedule = training.schedule or "cosine"
    training.warmup_ratio = 0.03 if training.warmup_ratio is None else training.warmup_ratio
    if training.schedule == "wsd":
        training.decay_ratio = training.decay_ratio or 0.2
    training.optimizer = training.optimizer or "adamw"
    training.activation_checkpointing = training.activation_checkpointing or "none"
    training.precision = training.precision or ("bf16" if out.compute.device == "cuda" else "fp32")
    out.data.overlong = out.data.overlong or "truncate"
    out.compute.strategy = out.compute.strategy or _strategy(out)
    if defaults is not None:
        pods = out.pods or Pods()
        out.pods = pods.model_copy(update={"common": merge(defaults.pods, pods.common)})
        if out.budget.gpu_hour_price is None and defaults.gpu_hour_price is not None:
            out.budget = out.budget.model_copy(update={"gpu_hour_price": defaults.gpu_hour_price})
        if out.compute.gpu_type is None and out.compute.device == "cuda":
            out.compute.gpu_type = defaults.gpu_type
    return out


def _decide_method(method: MethodSpec) -> None:
    """An adapter to go on from brings its own settings."""
    if method.type in LOW_RANK and method.init_from is None:
        method.lora = method.lora.model_copy() if method.lora is not None else LoraSpec()
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
    """What `status.effective` holds: the decided spec without pods and switches."""
    wire = spec.wire()
    return {
        name: wire[name]
        for name in ("model", "method", "data", "training", "compute", "checkpoint", "evaluation", "budget", "retry")
        if name in wire
    }
