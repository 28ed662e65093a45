"""What one process has to do of a step: its rows, and the micro-batches that the trainer cuts them into."""

from __future__ import annotations

import math
from dataclasses import dataclass

from finetune_api.compute import MICRO_BATCH_TOKENS
from finetune_api.method import PROMPT_LEARNING, PromptTuningSpec
from finetune_api.planner.facts import DataFacts, PlanFacts
from finetune_api.planner.families import is_eager
from finetune_api.spec import FineTuneJobSpec

USUAL_BATCH = 16
_SPREAD = 2.5
"""Standard deviations above the mean that the largest of many steps is taken to be."""


@dataclass(frozen=True, slots=True)
class Share:
    """Of the largest step: `tokens` and `rows` in a micro-batch, the longest row in it, and how many micro-batches there are.

    `trained` are its tokens that the loss counts.
    """

    tokens: int
    rows: int
    longest: int
    trained: int
    count: int


def device_of(spec: FineTuneJobSpec) -> str:
    return spec.compute.device or ("cpu" if spec.compute.gpus_per_node == 0 else "cuda")


def processes(spec: FineTuneJobSpec) -> int:
    """Over all nodes."""
    return spec.compute.nodes * per_node(spec)


def per_node(spec: FineTuneJobSpec) -> int:
    """Processes of one pod."""
    compute = spec.compute
    return compute.processes_per_node or (1 if device_of(spec) == "cpu" else compute.gpus_per_node or 1)


def gpus(spec: FineTuneJobSpec) -> int:
    """That training holds."""
    return spec.compute.nodes * (0 if device_of(spec) == "cpu" else spec.compute.gpus_per_node or 1)


def of_step(spec: FineTuneJobSpec, facts: PlanFacts) -> Share:
    """The largest micro-batch of a training."""
    data = facts.data
    batch = min(spec.training.global_batch_size or USUAL_BATCH, data.rows)
    rows = max(1, math.ceil(batch / processes(spec)))
    mean, longest = data.tokens / data.rows, data.longest
    extra = virtual_tokens(spec)
    # Rows are shared out so that all have the same work: what one gets is less even than the whole only by its last row.
    step = rows * mean + _SPREAD * math.sqrt(rows) * _deviation(data)
    step = min(max(step, longest), float(rows * longest))
    budget = max(spec.compute.micro_batch_tokens or MICRO_BATCH_TOKENS[device_of(spec)], longest)
    if not packs(spec, facts):
        step = min(float(rows * longest), step * _padding(data))
    count = max(1, math.ceil(step / budget))
    exact = rows * mean
    even = count > 1 and math.ceil(step / budget) == math.ceil(exact / budget)
    tokens = min(budget, step) if not even else min(budget, math.ceil(rows / count) * step / rows)
    inside = max(1, round(tokens / max(mean, 1)))
    share = (data.trained_tokens or data.tokens) / data.tokens
    return Share(
        tokens=math.ceil(tokens) + extra * inside,
        rows=inside,
        longest=longest + extra,
        trained=max(1, math.ceil(tokens * share)),
        count=count,
    )


def packs(spec: FineTuneJobSpec, facts: PlanFacts) -> bool:
    """Whether rows lie end to end. Other models that cannot than those without fused attention are found out by the trainer alone."""
    able = facts.task == "causal-lm" and not is_eager(facts.model)
    return able and spec.data.packing is not False and spec.method.type not in PROMPT_LEARNING


def virtual_tokens(spec: FineTuneJobSpec) -> int:
    """Before each row, as positions of their own."""
    if spec.method.type != "prompt":
        return 0
    return (spec.method.prompt_tuning or PromptTuningSpec()).virtual_tokens


def _deviation(data: DataFacts) -> float:
    """Of the rows' lengths, in tokens."""
    if not data.lengths:
        return 0.0 if data.longest * data.rows <= data.tokens else (data.longest - data.tokens / data.rows) / 3
    rows = sum(count for _, count in data.lengths)
    mean = sum(length * count for length, count in data.lengths) / rows
    return math.sqrt(sum(count * (length - mean) ** 2 for length, count in data.lengths) / rows)


def _padding(data: DataFacts) -> float:
    """Padded over real tokens: rows of similar length stand together."""
    mean = data.tokens / data.rows
    return 1 + 0.5 * _deviation(data) / mean
