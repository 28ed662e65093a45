"""Find the next notch down when memory runs out: one change that needs less memory and trains the same model.

A notch changes no field that training or its step plan depends on, so a job resumes from its checkpoint and keeps its global
batch. Fields that the user set are kept, with one exception: memory requests and limits of pods are raised. All functions are
pure. `spec` is always resolved and without notches; `given` is the one that the user wrote; `notches` are those of the job so far.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import field_validator
from pydantic.alias_generators import to_snake

from finetune_api.base import ApiModel, Int64, PreservedObject
from finetune_api.compute import MICRO_BATCH_TOKENS, OffloadSpec, Strategy
from finetune_api.errors import with_spec_paths
from finetune_api.planner import fit
from finetune_api.planner.estimate import USABLE, capacity_of
from finetune_api.planner.facts import PlanFacts
from finetune_api.planner.fit import CHECKPOINTING, Way
from finetune_api.planner.gpus import GPUS, gib, size_of
from finetune_api.planner.host import host_memory_of
from finetune_api.planner.memory import memory_of
from finetune_api.planner.share import device_of, of_step, processes
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Stage

_DEEPER: dict[str, tuple[Strategy, ...]] = {
    "ddp": ("zero1", "zero2", "fsdp2", "zero3"),
    "zero1": ("zero2", "fsdp2", "zero3"),
    "zero2": ("fsdp2", "zero3"),
}
_OFFLOAD_COST = {"optimizer": 50.0, "parameters": 100.0}
"""After every notch that stays on the GPUs, as in `fit.smallest_change`."""
_WORTH = 0.05
"""Share of memory that a notch should save: each one costs a start of the training. Smaller ones follow when no such is left."""
_LEAST = 0.01
_MARGIN = 0.75
"""Of an estimate that proved too low: advice is for a plan that needs this much of it."""
_GROWTH = 1.5
HOST_CAP = 4
"""Times the original memory of a pod, where the platform sets no cap."""


class Notch(ApiModel):
    """One step down the memory ladder."""

    kind: Literal["gpu", "host"]
    field: str
    before: str
    after: str
    change: PreservedObject
    """A part of a spec in wire form, for `apply`."""
    predicted_bytes: Int64 | None = None
    """Peak of one process after the notch."""
    sentence: str

    @field_validator("sentence")
    @classmethod
    def _as_in_a_manifest(cls, text: str) -> str:
        return with_spec_paths(text)


@dataclass(frozen=True, slots=True)
class Bottom:
    """No notch is left. The sentence names what would fit."""

    sentence: str


def apply(spec: FineTuneJobSpec, notches: Sequence[Notch], *, given: FineTuneJobSpec | None = None) -> FineTuneJobSpec:
    """Lay `notches` over `spec`, in their order. Idempotent.

    A field that the user has set meanwhile stays as it is set, as does a memory request that is larger than the notch's; a notch
    that no longer goes with the spec (its strategy was changed) is left out.
    """
    for notch in notches:
        kept = () if given is None else _set_fields(given, notch.change)
        spec = _changed(spec, notch.change, kept) or spec
    return spec


def _changed(spec: FineTuneJobSpec, change: Mapping[str, Any], kept: Sequence[str] = ()) -> FineTuneJobSpec | None:
    """Lay `change` over `spec`, except the fields in `kept`. None: it does not go with the rest (`combinations`)."""
    wire = spec.wire()
    merged = _laid_over(change, wire, kept)
    if merged == wire:
        return spec
    try:
        return FineTuneJobSpec.model_validate(merged)
    except ValueError:
        return None


def next_gpu_notch(
    spec: FineTuneJobSpec, facts: PlanFacts, notches: Sequence[Notch], *, given: FineTuneJobSpec
) -> Notch | Bottom:
    """Return the fastest change after which the estimate is lower than all that ran out (exit code 4), also on CPUs."""
    return _next_device_notch("gpu", spec, facts, notches, given=given)


def next_host_notch(
    spec: FineTuneJobSpec,
    facts: PlanFacts | None,
    notches: Sequence[Notch],
    *,
    given: FineTuneJobSpec,
    stage: Stage,
    resources: Mapping[str, Mapping[str, Any]],
    cap: int | None = None,
) -> Notch | Bottom:
    """Return the next change for a pod that was killed for its memory use (OOMKilled).

    `resources` are the requests and limits of the stage's container without notches, `cap` the most bytes that a pod may ask
    for (absent: 4 times the original). Without `facts` only the pod's memory is raised.
    """
    memory = {kind: size_of(amounts["memory"]) for kind, amounts in resources.items() if "memory" in amounts} or {
        "requests": 0
    }
    most = max(memory.values())
    cap = HOST_CAP * most if cap is None else cap
    for notch in notches:
        memory |= {kind: max(size, memory.get(kind, 0)) for kind, size in _memory_in(notch, stage).items()}
    now = max(memory.values())
    if 0 < now < cap:
        return _more_memory(stage, memory, min(_GROWTH, cap / now))
    field, advice, kept = f"pods.{stage}.resources.limits.memory", "", list[str]()
    if stage == "train" and facts is not None:
        ran_out = _ran_out(spec, facts, notches, given)
        plan = apply(spec, notches, given=given)
        if less := _less_on_host(plan, facts, given=given, ran_out=ran_out, kept=kept):
            return less
        if device_of(spec) == "cpu":  # there the process's memory is the pod's
            below = _next_device_notch("host", spec, facts, notches, given=given)
            if isinstance(below, Notch):
                return below
            advice = f" {below.sentence}"
    why = "the most that the platform allows" if cap != HOST_CAP * most else f"{HOST_CAP} times what was asked for"
    text = f"Out of host memory with {_quantity(now)} for each pod of stage {stage} ({why}), and no notch is left"
    text += f". Set {field} to more than {_quantity(now)}, or run on nodes with more memory."
    return Bottom(with_spec_paths(text + _keeps(kept) + advice))


def _next_device_notch(
    kind: Literal["gpu", "host"],
    spec: FineTuneJobSpec,
    facts: PlanFacts,
    notches: Sequence[Notch],
    *,
    given: FineTuneJobSpec,
) -> Notch | Bottom:
    now = apply(spec, notches, given=given)
    before = memory_of(now, facts).total
    floor = min([before, *_ran_out(spec, facts, notches, given)])
    free, kept = list[_Candidate](), list[str]()
    for one in _candidates(now, facts):
        if one.field.startswith("compute.offload") and any(n.kind == "host" and "offload" in n.field for n in notches):
            continue  # host memory had no room for it
        if one.predicted > (1 - _LEAST) * floor:
            continue
        if fields := _set_fields(given, one.change):
            kept += fields
        else:
            free.append(one)
    chosen = [one for one in free if one.predicted <= (1 - _WORTH) * floor] or free
    if not chosen:
        return Bottom(with_spec_paths(_what_fits(now, facts, before, kept)))
    best = min(chosen, key=lambda one: (one.cost, one.predicted))
    unit = "GPU" if device_of(spec) == "cuda" else "process"
    text = f"{best.field} is changed from {best.before} to {best.after}"
    if gib(before) != gib(best.predicted):
        text += f"; the memory estimate falls from {gib(before)} to {gib(best.predicted)} a {unit}"
    if best.host:
        text += f", and {gib(best.host)} of host memory a pod are used instead"
    return Notch(
        kind=kind,
        field=best.field,
        before=best.before,
        after=best.after,
        change=best.change,
        predicted_bytes=best.predicted,
        sentence=text,
    )


@dataclass(frozen=True, slots=True)
class _Candidate:
    """`cost` as in `fit.Way`; `host` are the bytes of a pod's memory that it uses instead of the GPU's."""

    field: str
    before: str
    after: str
    change: dict[str, Any]
    predicted: int
    cost: float
    host: int = 0


def _candidates(spec: FineTuneJobSpec, facts: PlanFacts) -> Iterator[_Candidate]:
    """All single changes that go with the rest of `spec`, whatever they save."""
    for field, before, after, change in _changes(spec, facts):
        changed = _changed(spec, change)
        if changed is None:
            continue
        way = Way(
            changed.compute.strategy or "ddp",
            changed.training.activation_checkpointing or "none",
            _tokens(changed),
            memory_of(changed, facts),
        )
        cost, host = way.cost, 0
        if field.startswith("compute.offload"):
            cost += _OFFLOAD_COST[field.rpartition(".")[2]]
            host = host_memory_of(changed, facts).offload - host_memory_of(spec, facts).offload
        yield _Candidate(field, before, after, change, way.memory.total, cost, host)


def _changes(spec: FineTuneJobSpec, facts: PlanFacts) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """(field, before, after, part of a spec)."""
    tokens, longest = _tokens(spec), facts.data.longest
    used = min(
        tokens, of_step(spec, facts).tokens
    )  # a step may have fewer tokens for each process than it may take at once
    if used > longest:  # a longer row goes alone, so a smaller budget changes nothing
        half = max(used // 2, longest)
        yield "compute.microBatchTokens", str(tokens), str(half), {"compute": {"microBatchTokens": half}}
    kind = spec.training.activation_checkpointing or "none"
    for more in CHECKPOINTING[CHECKPOINTING.index(kind) + 1 :]:
        change = {"training": {"activationCheckpointing": more}}
        yield "training.activationCheckpointing", kind, more, change
    strategy = spec.compute.strategy or "ddp"
    if processes(spec) > 1:
        for deeper in _DEEPER.get(strategy, ()):
            yield "compute.strategy", strategy, deeper, {"compute": {"strategy": deeper}}
    if device_of(spec) != "cuda":
        return
    offload = spec.compute.offload or OffloadSpec()
    for part, value, able, usual in (
        ("optimizer", offload.optimizer, ("zero1", "zero2", "zero3", "fsdp2"), "zero2"),
        ("parameters", offload.parameters, ("zero3", "fsdp2"), "zero3"),
    ):
        if value in (None, "none"):
            moved: dict[str, Any] = {"offload": {part: "cpu"}}
            if strategy not in able:
                moved["strategy"] = usual
            yield f"compute.offload.{part}", "none", "cpu", {"compute": moved}


def _ran_out(spec: FineTuneJobSpec, facts: PlanFacts, notches: Sequence[Notch], given: FineTuneJobSpec) -> list[int]:
    """Estimates of the plans that ran out of GPU memory before each of `notches`."""
    tried = [count for count, notch in enumerate(notches) if notch.kind == "gpu"]
    return [memory_of(apply(spec, notches[:count], given=given), facts).total for count in tried]


def _less_on_host(
    now: FineTuneJobSpec,
    facts: PlanFacts,
    *,
    given: FineTuneJobSpec,
    ran_out: Sequence[int],
    kept: list[str],
) -> Notch | None:
    """Fewer processes in a pod, each of which loads the model; then no offload to the pod's memory.

    Only where the GPUs have room for it: `ran_out` are estimates that proved too much. Fields that the user set are added to `kept`.
    """
    changes: list[tuple[str, str, str, dict[str, Any]]] = []
    each = now.compute.processes_per_node or 1
    if each > 1:
        change: dict[str, Any] = {"compute": {"processesPerNode": each // 2}}
        changes.append(("compute.processesPerNode", str(each), str(each // 2), change))
    offload = now.compute.offload or OffloadSpec()
    for part, value in (("parameters", offload.parameters), ("optimizer", offload.optimizer)):
        if value == "cpu":
            changes.append((f"compute.offload.{part}", "cpu", "none", {"compute": {"offload": {part: "none"}}}))
    limit = min([capacity_of(now) or math.inf, *(size - 1 for size in ran_out)])
    pod = each * memory_of(now, facts).total
    for field, before, after, change in changes:
        changed = _changed(now, change)
        if changed is None:
            continue
        predicted = memory_of(changed, facts).total
        cpu = device_of(now) == "cpu"
        if predicted * (each // 2) >= pod if cpu else predicted > limit:
            continue
        if fields := _set_fields(given, change):
            kept += fields
            continue
        sentence = f"{field} is changed from {before} to {after}, which needs less host memory"
        return Notch(
            kind="host",
            field=field,
            before=before,
            after=after,
            change=change,
            predicted_bytes=predicted,
            sentence=sentence,
        )
    return None


def _more_memory(stage: Stage, memory: Mapping[str, int], growth: float) -> Notch:
    raised = {kind: _quantity(math.ceil(size * growth)) for kind, size in memory.items()}
    kind = "limits" if "limits" in memory else "requests"
    field = f"pods.{stage}.resources.{kind}.memory"
    before, after = _quantity(memory[kind]), raised[kind]
    return Notch(
        kind="host",
        field=field,
        before=before,
        after=after,
        change={"pods": {stage: {"resources": {kind: {"memory": size} for kind, size in raised.items()}}}},
        sentence=f"{field} is raised from {before} to {after}",
    )


def _memory_in(notch: Notch, stage: Stage) -> dict[str, int]:
    resources = notch.change.get("pods", {}).get(stage, {}).get("resources", {})
    return {kind: size_of(amounts["memory"]) for kind, amounts in resources.items()}


def _what_fits(spec: FineTuneJobSpec, facts: PlanFacts, predicted: int, kept: list[str]) -> str:
    """A sentence for the end of the ladder, from the planner's estimate."""
    capacity = capacity_of(spec)
    goal = capacity if capacity is not None and predicted > capacity else int(_MARGIN * predicted)
    cuda = device_of(spec) == "cuda"
    text = f"Out of {'GPU memory' if cuda else 'memory'}, and no notch is left: the estimate is {gib(predicted)} a "
    text += f"{'GPU' if cuda else 'process'} with compute.strategy {spec.compute.strategy or 'ddp'}"
    text += f", training.activationCheckpointing {spec.training.activation_checkpointing or 'none'}"
    text += f" and compute.microBatchTokens {_tokens(spec)}"
    options = [fit.more_gpus(spec, facts, goal), _larger(predicted, capacity)] if cuda else ["more memory for each pod"]
    options += [fit.shorter(spec, facts, goal), fit.quantised(spec, facts, goal) if cuda else None]
    known = "; or ".join(option.removeprefix("needs ").removesuffix(" fits") for option in options if option)
    text += f". By the estimate, one of these helps: {known}."
    if capacity is not None and predicted < _MARGIN * capacity:
        text += f" Check that nothing else uses the GPU: {gib(capacity)} of its memory should be free."
    return text + _keeps(kept)


def _larger(predicted: int, capacity: int | None) -> str | None:
    """The smallest known GPU that has room for more than the estimate, and than the GPU of the job."""
    if capacity is None:
        return "a GPU with more memory"
    need = max(predicted / _MARGIN, capacity + 1) / USABLE
    gpu = min((gpu for gpu in GPUS.values() if gpu.memory >= need), key=lambda gpu: gpu.memory, default=None)
    return None if gpu is None else f"a GPU with {gib(gpu.memory)} (gpuType: {gpu.name})"


def _keeps(fields: list[str]) -> str:
    if not fields:
        return ""
    names = list(dict.fromkeys(fields))
    return f" The job sets {' and '.join(names)}, so {'it was' if len(names) == 1 else 'they were'} kept: lower or remove {'it' if len(names) == 1 else 'them'}."


def _tokens(spec: FineTuneJobSpec) -> int:
    return spec.compute.micro_batch_tokens or MICRO_BATCH_TOKENS[device_of(spec)]


def _laid_over(above: Mapping[str, Any], below: Mapping[str, Any], kept: Sequence[str], at: str = "") -> dict[str, Any]:
    """Merge two specs in wire form. Fields in `kept` and larger amounts of memory stay as they are in `below`."""
    merged = dict(below)
    for name, value in above.items():
        path = f"{at}.{name}".lstrip(".")
        if isinstance(value, Mapping):
            merged[name] = _laid_over(value, below.get(name) or {}, kept, path)
        elif name == "memory":
            merged[name] = max(value, below.get(name, 0), key=size_of)
        elif path not in kept:
            merged[name] = value
    return merged


def _set_fields(given: FineTuneJobSpec, change: Mapping[str, Any], at: str = "") -> list[str]:
    """Fields of `change` that the user set, by their path below spec. Resources of pods are not among them."""
    found = []
    for name, value in change.items():
        path = f"{at}.{name}".lstrip(".")
        if name == "pods":
            continue
        if isinstance(value, Mapping):
            found += _set_fields(given, value, path)
        elif _value_at(given, path) is not None:
            found.append(path)
    return found


def _value_at(spec: FineTuneJobSpec, path: str) -> Any:
    value: Any = spec
    for name in path.split("."):
        value = None if value is None else getattr(value, to_snake(name))
    return value


def _quantity(size: int) -> str:
    """Bytes as a Kubernetes quantity, rounded up to whole MiB."""
    mib = math.ceil(size / 2**20)
    return f"{mib // 1024}Gi" if mib % 1024 == 0 and mib else f"{mib}Mi"
