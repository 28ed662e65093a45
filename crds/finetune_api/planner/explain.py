"""Why `effective.resolve` decides as it does, for the choices in status and report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from finetune_api.planner.facts import PlanFacts
from finetune_api.spec import FineTuneJobSpec


@dataclass(frozen=True, slots=True)
class _Field:
    """`read` gives its value or None; `why` a line, from the whole spec."""

    path: str
    read: Callable[[FineTuneJobSpec], Any]
    why: Callable[[FineTuneJobSpec, PlanFacts], str]


def _device(spec: FineTuneJobSpec, _: PlanFacts) -> str:
    return "compute.gpusPerNode is 0" if spec.compute.device == "cpu" else "GPUs are asked for"


def _precision(spec: FineTuneJobSpec, _: PlanFacts) -> str:
    return "GPUs compute in bf16" if spec.training.precision == "bf16" else "most CPUs are slower in bf16"


def _alpha(spec: FineTuneJobSpec, _: PlanFacts) -> str:
    return f"twice the rank of {spec.method.lora.rank}" if spec.method.lora else "twice the rank"


def _lora(name: str) -> Callable[[FineTuneJobSpec], Any]:
    return lambda spec: getattr(spec.method.lora, name) if spec.method.lora else None


def _quantization(name: str) -> Callable[[FineTuneJobSpec], Any]:
    return lambda spec: getattr(spec.method.quantization, name) if spec.method.quantization else None


def _said(text: str) -> Callable[[FineTuneJobSpec, PlanFacts], str]:
    return lambda *_: text


_FIELDS = (
    _Field("model.task", lambda spec: spec.model.task, lambda _, facts: "what model and data are made for"),
    _Field("method.lora.alpha", _lora("alpha"), _alpha),
    _Field("method.quantization.bits", _quantization("bits"), _said("the least memory")),
    _Field("method.quantization.type", _quantization("type"), _said("made for weights that are normally distributed")),
    _Field("method.quantization.doubleQuant", _quantization("double_quant"), _said("saves 0.4 bits a weight")),
    _Field(
        "method.promptTuning.virtualTokens",
        lambda spec: spec.method.prompt_tuning and spec.method.prompt_tuning.virtual_tokens,
        _said("the papers' usual number"),
    ),
    _Field("data.maxLength", lambda spec: spec.data.max_length, _said("the longest row")),
    _Field("data.overlong", lambda spec: spec.data.overlong, _said("nothing is left out")),
    _Field("training.schedule", lambda spec: spec.training.schedule, _said("falls to 0, so the last steps settle")),
    _Field("training.decayRatio", lambda spec: spec.training.decay_ratio, _said("the last fifth falls")),
    _Field("training.optimizer", lambda spec: spec.training.optimizer, _said("the surest, and any strategy shards its states")),
    _Field("training.precision", lambda spec: spec.training.precision, _precision),
    _Field("compute.device", lambda spec: spec.compute.device, _device),
    _Field("compute.processesPerNode", lambda spec: spec.compute.processes_per_node, _said("one a GPU, or one on a CPU")),
    _Field("compute.microBatchTokens", lambda spec: spec.compute.micro_batch_tokens, _said("more make no device faster")),
    _Field("compute.gpuType", lambda spec: spec.compute.gpu_type, _said("the platform's")),
    _Field("budget.gpuHourPrice", lambda spec: spec.budget.gpu_hour_price, _said("the platform's")),
)  # fmt: skip


def resolved(given: FineTuneJobSpec, whole: FineTuneJobSpec, facts: PlanFacts) -> list[tuple[str, Any, str]]:
    """(path, value, why) of each field that is absent in `given` and there in `whole`."""
    found = []
    for field in _FIELDS:
        value = field.read(whole)
        if field.read(given) is None:
            if field.path == "model.task":
                value = facts.task
            if field.path == "data.maxLength":
                value = facts.data.longest
            if value is not None:
                found.append((field.path, value, field.why(whole, facts)))
    return found
