"""What a job takes: memory by part, whether it fits and what would make it fit, operations, time, money, room."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.planner import duration, flops, parameters, storage
from finetune_api.planner.duration import Duration
from finetune_api.planner.facts import PlanFacts
from finetune_api.planner.fit import smallest_change
from finetune_api.planner.gpus import bytes_of, gib, gpu_of
from finetune_api.planner.host import HostMemory, host_memory_of
from finetune_api.planner.memory import Memory, memory_of
from finetune_api.planner.share import USUAL_BATCH, Share, device_of, gpus, of_step
from finetune_api.planner.steps import StepsPlan, plan_steps
from finetune_api.spec import FineTuneJobSpec

USABLE = 0.95
"""Of a GPU's memory that a plan may fill."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """`capacity` in bytes and `fits` are None where the GPU is not known; `change` is the smallest that makes it fit, as a clause.

    `model_flops` of the whole training, over all processes. `cost` is None without a price, and 0 on CPUs.
    """

    parameters: int
    trainable: int
    memory: Memory
    capacity: int | None
    fits: bool | None
    change: str | None
    host: HostMemory
    share: Share
    steps: StepsPlan
    tokens: int
    model_flops: float
    duration: Duration
    gpus: int
    gpu_hours: float
    cost: float | None
    storage: int

    @property
    def warning(self) -> str | None:
        """The sentence of a plan that does not fit."""
        if self.fits is not False or self.capacity is None:
            return None
        text = f"does not fit: {gib(self.memory.total)} a GPU, of {gib(self.capacity)} that can be used"
        return f"{text}; {self.change}" if self.change else text


def estimate(
    spec: FineTuneJobSpec, facts: PlanFacts, *, tokens: int | None = None, steps: int | None = None
) -> Estimate:
    """`spec` is resolved and decided; `tokens` and `steps` of the whole training where prepare has counted them."""
    count = parameters.count(spec, facts.model, labels=facts.data.labels)
    memory, capacity = memory_of(spec, facts), capacity_of(spec)
    fits = None if capacity is None else memory.total <= capacity
    plan = steps_of(spec, facts)
    taken = steps or plan.steps
    whole = tokens or round(plan.epochs * facts.data.tokens)
    time = duration.duration_of(spec, facts, steps=taken, tokens=whole)
    held = gpus(spec)
    hours = held * time.seconds / 3600
    price = spec.budget.gpu_hour_price
    return Estimate(
        parameters=count.total,
        trainable=count.trainable,
        memory=memory,
        capacity=capacity,
        fits=fits,
        change=smallest_change(spec, facts, capacity) if fits is False and capacity else None,
        host=host_memory_of(spec, facts),
        share=of_step(spec, facts),
        steps=plan,
        tokens=whole,
        model_flops=flops.of_epoch(spec, facts.model, facts.data).model * whole / facts.data.tokens,
        duration=time,
        gpus=held,
        gpu_hours=hours,
        cost=None if price is None else hours * price,
        storage=storage.bytes_of(spec, facts),
    )


def steps_of(spec: FineTuneJobSpec, facts: PlanFacts) -> StepsPlan:
    training = spec.training
    return plan_steps(
        train_rows=facts.data.rows,
        global_batch_size=training.global_batch_size or USUAL_BATCH,
        epochs=training.epochs or (None if training.max_steps else 3),
        max_steps=training.max_steps,
        checkpoint_every_steps=spec.checkpoint.every_steps,
    )


def capacity_of(spec: FineTuneJobSpec) -> int | None:
    """Bytes that one process may fill; None on CPUs, and for GPUs of which nothing is said."""
    if device_of(spec) == "cpu":
        return None
    compute, gpu = spec.compute, gpu_of(spec.compute.gpu_type)
    size = bytes_of(compute.gpu_memory) if compute.gpu_memory else gpu.memory if gpu else None
    return None if size is None else int(USABLE * size)
