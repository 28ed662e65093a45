"""Absent means decided: from a spec and the platform's defaults to the spec that the stages run.

Values that need the data or the model (lengths, checkpoint intervals) are decided by `prepare`, through
`planner.steps`, and reach status in its result; everything else is decided here, before anything runs.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from finetune_api.base import ApiModel
from finetune_api.pods import Pods, PodSettings, merge
from finetune_api.spec import ComputeSpec, FineTuneJobSpec, LoraSpec


class PlatformDefaults(ApiModel):
    """The platform team's settings (chart value `trainer.defaults`): they lie beneath every job's own."""

    pods: PodSettings = Field(default_factory=PodSettings)


def resolve(spec: FineTuneJobSpec, defaults: PlatformDefaults | None = None) -> FineTuneJobSpec:
    """The spec with every field decided that can be decided without reading data. Pure; resolving twice changes nothing."""
    # Copied as far as it changes: a whole deep copy costs more than everything else that the operator does in a look.
    out = spec.model_copy(
        update={
            "compute": compute(spec.compute),
            "method": spec.method.model_copy(),
            "training": spec.training.model_copy(),
            "data": spec.data.model_copy(),
        }
    )
    if out.method.type == "lora":
        out.method.lora = out.method.lora.model_copy() if out.method.lora is not None else LoraSpec()
        out.method.lora.alpha = out.method.lora.alpha or 2.0 * out.method.lora.rank
    training = out.training
    if training.max_steps is None and training.epochs is None:
        training.epochs = 3
    training.global_batch_size = training.global_batch_size or 16
    training.learning_rate = training.learning_rate or (2e-4 if out.method.type == "lora" else 2e-5)
    training.schedule = training.schedule or "cosine"
    training.warmup_ratio = 0.03 if training.warmup_ratio is None else training.warmup_ratio
    training.precision = training.precision or ("bf16" if out.compute.device == "cuda" else "fp32")
    out.data.overlong = out.data.overlong or "truncate"
    if defaults is not None:
        pods = out.pods or Pods()
        out.pods = pods.model_copy(update={"common": merge(defaults.pods, pods.common)})
    return out


def compute(spec: ComputeSpec) -> ComputeSpec:
    """Device, processes and strategy of a gang."""
    device = spec.device or ("cpu" if spec.gpus_per_node == 0 else "cuda")
    gpus = 0 if device == "cpu" else spec.gpus_per_node or 1
    processes = spec.processes_per_node or max(gpus, 1)
    strategy = spec.strategy or ("zero2" if spec.nodes * processes > 1 else "ddp")
    return spec.model_copy(
        update={"device": device, "gpus_per_node": gpus, "processes_per_node": processes, "strategy": strategy}
    )


def shown(spec: FineTuneJobSpec) -> dict[str, Any]:
    """What `status.effective` holds: the decided spec without pods and switches."""
    wire = spec.wire()
    return {
        name: wire[name]
        for name in ("model", "method", "data", "training", "compute", "checkpoint", "evaluation", "retry")
        if name in wire
    }
