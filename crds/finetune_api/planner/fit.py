"""Which ways of sharing and saving memory make a job fit, and which of them changes least."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

from finetune_api.base import ApiModel
from finetune_api.combinations import refused
from finetune_api.compute import MICRO_BATCH_TOKENS, OffloadSpec, Strategy
from finetune_api.planner.facts import DataFacts, PlanFacts
from finetune_api.planner.gpus import gib
from finetune_api.planner.memory import Memory, memory_of
from finetune_api.planner.share import device_of, processes
from finetune_api.spec import FineTuneJobSpec
from finetune_api.training import ActivationCheckpointing

M = TypeVar("M", bound=ApiModel)

STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
CHECKPOINTING: tuple[ActivationCheckpointing, ...] = get_args(ActivationCheckpointing)
_SHARDING: tuple[Strategy, ...] = ("zero2", "fsdp2", "zero3")
_COST = {
    "none": 0.0,
    "selective": 0.22,
    "full": 0.33,
    "ddp": 0.0,
    "zero1": 0.02,
    "zero2": 0.01,
    "fsdp2": 0.1,
    "zero3": 0.15,
}
"""Share of time that each way costs."""
_GATHERING = ("zero3", "fsdp2")
_TOKENS_COST = {16384: 0.0, 8192: 0.02, 4096: 0.05, 2048: 0.1, 1024: 0.18}
"""Of smaller micro-batches: matrices of thousands of tokens keep a GPU busy, those of hundreds do not."""


@dataclass(frozen=True, slots=True)
class Way:
    """A strategy, a checkpointing and a size of micro-batches that go together with the rest of a spec, and the memory that
    they take."""

    strategy: Strategy
    checkpointing: ActivationCheckpointing
    tokens: int
    memory: Memory

    @property
    def cost(self) -> float:
        """Share of time, over all memory kept on one GPU. What gathers weights does so for each micro-batch."""
        often = MICRO_BATCH_TOKENS["cuda"] / self.tokens if self.strategy in _GATHERING else 1.0
        return often * _COST[self.strategy] + _COST[self.checkpointing] + _tokens_cost(self.tokens)


def _tokens_cost(tokens: int) -> float:
    """That of the next smaller size in the table; below it, half the size costs twice as much."""
    least = min(_TOKENS_COST)
    return next((cost for size, cost in _TOKENS_COST.items() if size <= tokens), _TOKENS_COST[least] * least / tokens)


def with_way(
    spec: FineTuneJobSpec,
    strategy: Strategy | None = None,
    checkpointing: ActivationCheckpointing | None = None,
    tokens: int | None = None,
) -> FineTuneJobSpec:
    """None: as the spec has it."""
    compute = {"strategy": strategy, "micro_batch_tokens": tokens}
    out = spec.model_copy(update={"compute": _with(spec.compute, compute)})
    return out.model_copy(update={"training": _with(out.training, {"activation_checkpointing": checkpointing})})


def _with(part: M, update: dict[str, Any]) -> M:
    return part.model_copy(update={name: value for name, value in update.items() if value is not None})


def ways(
    spec: FineTuneJobSpec,
    facts: PlanFacts,
    *,
    strategies: tuple[Strategy, ...] = STRATEGIES,
    checkpointing: tuple[ActivationCheckpointing, ...] = CHECKPOINTING,
) -> list[Way]:
    """All that are possible, the fastest first. Micro-batches of a spec that says how large they are stay so."""
    given = spec.compute.micro_batch_tokens
    sizes = (given,) if given else smaller(spec, facts)
    found = []
    for strategy in strategies:
        for kind in checkpointing:
            if any(refused(with_way(spec, strategy, kind))):
                continue
            found += [
                Way(strategy, kind, size, memory_of(with_way(spec, strategy, kind, size), facts)) for size in sizes
            ]
    return sorted(found, key=lambda way: way.cost)


def smaller(spec: FineTuneJobSpec, facts: PlanFacts) -> tuple[int, ...]:
    """Sizes of micro-batches, the usual one first, as long as a smaller one is smaller: a row is never cut."""
    usual = MICRO_BATCH_TOKENS[device_of(spec)]
    if device_of(spec) == "cpu":
        return (usual,)
    return (usual, *(size for size in _TOKENS_COST if size < usual and 2 * size > facts.data.longest))


def smallest_change(spec: FineTuneJobSpec, facts: PlanFacts, capacity: int) -> str | None:
    """The first of a list of changes, from harmless to dear, after which the job fits; None: none of them does."""
    for changed, said in _changes(spec, facts):
        if any(refused(changed)):
            continue
        total = memory_of(changed, facts).total
        if total <= capacity:
            return f"{said} fits with {gib(total)} of {gib(capacity)}"
    return more_gpus(spec, facts, capacity) or shorter(spec, facts, capacity) or quantised(spec, facts, capacity)


def _changes(spec: FineTuneJobSpec, facts: PlanFacts) -> Iterator[tuple[FineTuneJobSpec, str]]:
    for size in smaller(spec, facts):
        if size < (spec.compute.micro_batch_tokens or MICRO_BATCH_TOKENS["cuda"]):
            yield with_way(spec, tokens=size), f"microBatchTokens: {size}"
    now = spec.training.activation_checkpointing or "none"
    kinds = CHECKPOINTING[CHECKPOINTING.index(now) + 1 :]
    for kind in kinds:
        yield with_way(spec, None, kind), f"activationCheckpointing: {kind}"
    if processes(spec) > 1:
        for strategy in _SHARDING:
            for kind in (now, *kinds):
                extra = "" if kind == now else f" and activationCheckpointing: {kind}"
                yield with_way(spec, strategy, kind), f"strategy: {strategy}{extra}"
    else:
        eight = spec.model_copy(update={"training": spec.training.model_copy(update={"optimizer": "adamw-8bit"})})
        for kind in (now, *kinds):
            extra = "" if kind == now else f" and activationCheckpointing: {kind}"
            yield with_way(eight, "ddp", kind), f"optimizer: adamw-8bit{extra}"
    for strategy, offload, said in (
        ("zero2", OffloadSpec(optimizer="cpu"), "offload.optimizer: cpu"),
        ("zero3", OffloadSpec(optimizer="cpu", parameters="cpu"), "offload of optimizer and parameters to cpu"),
    ):
        compute = spec.compute.model_copy(update={"offload": offload, "strategy": strategy})
        moved = spec.model_copy(update={"compute": compute})
        yield with_way(moved, None, "full"), f"{said} with strategy: {strategy} and activationCheckpointing: full"


def more_gpus(spec: FineTuneJobSpec, facts: PlanFacts, capacity: int) -> str | None:
    """The fewest GPUs over which it fits, fully sharded where that is possible."""
    strategy: Strategy = "zero2" if spec.method.type == "qlora" else "zero3"
    for count in (2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48, 64, 96, 128):
        if count <= processes(spec):
            continue
        nodes, each = (1, count) if count <= 8 else (-(-count // 8), 8)
        compute = spec.compute.model_copy(
            update={"nodes": nodes, "gpus_per_node": each, "processes_per_node": each, "strategy": strategy}
        )
        one = with_way(spec.model_copy(update={"compute": compute}), None, "full")
        if not any(refused(one)) and memory_of(one, facts).total <= capacity:
            return f"needs {count} GPUs with strategy: {strategy} and activationCheckpointing: full"
    return None


def shorter(spec: FineTuneJobSpec, facts: PlanFacts, capacity: int) -> str | None:
    """The longest rows with which it fits, everything else saved as well."""
    length = facts.data.longest
    while length > 256:
        length //= 2
        cut = facts.model_copy(update={"data": shortened(facts, length)})
        if memory_of(with_way(spec, None, _most(spec)), cut).total <= capacity:
            return f"data.maxLength: {length} with activationCheckpointing: {_most(spec)} fits"
    return None


def quantised(spec: FineTuneJobSpec, facts: PlanFacts, capacity: int) -> str | None:
    if spec.method.type not in ("lora", "dora"):
        return None
    method = spec.method.model_copy(update={"type": "qlora"})
    compute = spec.compute.model_copy(update={"strategy": "ddp"})
    one = with_way(spec.model_copy(update={"method": method, "compute": compute}), None, "full")
    if memory_of(one, facts).total <= capacity:
        return "method.type: qlora with activationCheckpointing: full fits"
    return None


def _most(spec: FineTuneJobSpec) -> ActivationCheckpointing:
    return "none" if spec.method.type == "prefix" else "full"


def shortened(facts: PlanFacts, length: int) -> DataFacts:
    """The data's numbers with all rows cut to `length` tokens."""
    data = facts.data
    bins = [(min(longest, length), rows) for longest, rows in data.lengths]
    before = sum(longest * rows for longest, rows in data.lengths)
    after = sum(longest * rows for longest, rows in bins)
    tokens = data.tokens * after // before if before else min(data.tokens, length * data.rows)
    return data.model_copy(
        update={
            "longest": min(length, data.longest),
            "lengths": bins,
            "tokens": max(1, tokens),
            "trained_tokens": data.trained_tokens * max(1, tokens) // data.tokens,
        }
    )
