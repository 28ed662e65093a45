"""How long a training takes: from what was measured of one like it, or from a table of how well machines are used.

The share of a GPU's peak that trainings reach is from published runs (reference: NVIDIA NeMo AutoModel's performance
summary, 40.6% for an 8B LoRA on one H100 and 32% for a 70B over eight; torchtitan, 33-39% for full fine-tuning; torchtune,
63% of an A100 compiled). Without a measurement a plan is therefore given with a wide range.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.planner import flops as operations
from finetune_api.planner import parameters
from finetune_api.planner.facts import PlanFacts
from finetune_api.planner.gpus import Gpu, gpu_of
from finetune_api.planner.share import device_of, of_step, processes
from finetune_api.planner.steps import plan_steps, validated_rows
from finetune_api.spec import FineTuneJobSpec

UTILISATION = {"lora": 0.38, "qlora": 0.33, "dora": 0.30, "prefix": 0.35, "prompt": 0.35, "full": 0.38}
"""Of the dense 16-bit peak, without recomputation, in micro-batches of thousands of tokens."""
_STRATEGY = {"ddp": 1.0, "zero1": 0.98, "zero2": 0.97, "zero3": 0.85, "fsdp2": 0.9}
_CPU_FLOPS = 25e9
"""Of one process on a CPU that training of small models in fp32 reaches: two threads, 1,371 tokens/s of 13 million
parameters (benchmarks/RESULTS.md) are 0.1 TFLOP/s."""
_BANDS = {"measured": (0.9, 1.15), "table": (0.65, 1.9), "unknown": (0.3, 3.5)}
"""Shortest and longest over the expected time, by what it is made from."""
_START = {"cpu": 15.0, "cuda": 60.0}
"""Seconds to start a process and import everything."""
_LOAD_BYTES = 1e9
"""Of weights a second."""
_STEP_OVERHEAD = {"cpu": 0.01, "cuda": 0.03}
_DECODE_SHARE = 0.4
"""Of memory bandwidth that generation reaches."""


@dataclass(frozen=True, slots=True)
class Duration:
    """Seconds of training pods, with the range that they fall into; `basis` says from what."""

    seconds: float
    shortest: float
    longest: float
    tokens_per_second: float
    step_seconds: float
    basis: str


def duration_of(spec: FineTuneJobSpec, facts: PlanFacts, *, steps: int, tokens: int) -> Duration:
    """Of a training of `steps` steps over `tokens` tokens."""
    measured = facts.measured
    if measured is not None:
        speed, certain = measured.tokens_per_second, "measured"
        startup, rest = measured.startup_seconds, measured.evaluation_seconds
        basis = f"measured: {speed:,.0f} tokens/s in {measured.runs} earlier training{'s' * (measured.runs > 1)} of this kind"
    else:
        speed, certain, basis = _expected(spec, facts, steps=steps, tokens=tokens)
        startup = _START[device_of(spec)] + _weight_bytes(spec, facts) / _LOAD_BYTES
        rest = _evaluation(spec, facts, speed, steps, tokens)
    seconds = startup + tokens / speed + rest
    low, high = _BANDS[certain]
    return Duration(seconds, low * seconds, high * seconds, speed, tokens / speed / max(1, steps), basis)


def _expected(spec: FineTuneJobSpec, facts: PlanFacts, *, steps: int, tokens: int) -> tuple[float, str, str]:
    """Tokens a second over all processes, how sure that is, and from what."""
    each = operations.of_epoch(spec, facts.model, facts.data).hardware / facts.data.tokens
    ranks, device = processes(spec), device_of(spec)
    if device == "cpu":
        speed = ranks * _CPU_FLOPS / each
        return _with_overhead(speed, steps, tokens, device), "unknown", "a guess: CPUs differ, and none was measured"
    gpu = gpu_of(spec.compute.gpu_type)
    known = gpu or gpu_of("a100-80gb")
    assert known is not None
    reached = (
        known.flops
        * UTILISATION[spec.method.type]
        * _STRATEGY[spec.compute.strategy or "ddp"]
        * _filled(spec, facts, known)
    )
    if not known.bf16 and (spec.training.precision or "bf16") == "bf16":
        reached /= 4  # emulated
    if spec.compute.nodes > 1:
        reached *= 0.9
    offload = spec.compute.offload
    if offload is not None and {offload.optimizer, offload.parameters} & {"cpu", "nvme"}:
        reached *= 0.35
    speed = _with_overhead(ranks * reached / each, steps, tokens, device)
    if gpu is None:
        said = f"a guess as for an A100: spec.compute.gpuType {spec.compute.gpu_type or 'is not given'}" + (
            " is not known" if spec.compute.gpu_type else ""
        )
        return speed, "unknown", said
    share = each * speed / (ranks * gpu.flops)
    return speed, "table", f"a table: {share:.0%} of {gpu.name}'s {gpu.flops / 1e12:,.0f} TFLOP/s"


def _filled(spec: FineTuneJobSpec, facts: PlanFacts, gpu: Gpu) -> float:
    """Small models and micro-batches leave a GPU waiting: half at about 2,000 tokens times a hidden size of 1,024."""
    work = of_step(spec, facts).tokens * facts.model.hidden_size
    half = 2048 * 1024 * gpu.flops / 989e12
    return work / (work + half)


def _with_overhead(speed: float, steps: int, tokens: int, device: str) -> float:
    return tokens / (tokens / speed + steps * _STEP_OVERHEAD[device])


def _weight_bytes(spec: FineTuneJobSpec, facts: PlanFacts) -> float:
    return facts.model.weight_bytes or 2.0 * facts.model.parameters


def _evaluation(spec: FineTuneJobSpec, facts: PlanFacts, speed: float, steps: int, tokens: int) -> float:
    """Validation ten times, the test rows once for the base and once tuned; a forward is a third of a training's pass."""
    data = facts.data
    mean = data.tokens / data.rows
    every = plan_steps(
        train_rows=data.rows, global_batch_size=1, epochs=None, max_steps=max(1, steps), checkpoint_every_steps=None
    ).validate_every_steps
    validations = steps // every
    rows = validated_rows(data.validation_rows, trained_rows=round(tokens / mean), validations=validations)
    forwards = mean * rows * validations
    twice = 2 if spec.evaluation.baseline else 1
    forwards += mean * data.test_rows * twice
    seconds = forwards / (3 * speed)
    if facts.task == "causal-lm" and data.test_rows:
        seconds += twice * _generation(spec, facts)
    return seconds + 10 * _saving(spec, facts)


def _generation(spec: FineTuneJobSpec, facts: PlanFacts) -> float:
    """Answers to the test rows, a token at a time, in batches of 32: bound by reading the weights."""
    asked = spec.evaluation.generation.max_new_tokens or min(512, max(16, facts.data.longest // 2))
    batches = -(-min(facts.data.test_rows, 1024) // (32 * processes(spec)))
    weights = 2.0 * facts.model.parameters
    gpu = gpu_of(spec.compute.gpu_type) or gpu_of("a100-80gb")
    assert gpu is not None
    rate = _DECODE_SHARE * gpu.bandwidth if device_of(spec) == "cuda" else 5e9
    return batches * asked * max(weights / rate, 0.002 * facts.model.layers)


def _saving(spec: FineTuneJobSpec, facts: PlanFacts) -> float:
    """One checkpoint."""
    return 12 * parameters.count(spec, facts.model).trainable / _LOAD_BYTES
