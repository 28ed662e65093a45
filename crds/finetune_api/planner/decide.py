"""Every field that is left out, decided from model and data, each with its reason in one line.

What needs neither is decided by `effective.resolve`; its choices are explained here too. Deciding what is decided
already changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from finetune_api.effective import overlay, resolve
from finetune_api.method import LOW_RANK
from finetune_api.planner import duration, hyperparameters
from finetune_api.planner.estimate import capacity_of, steps_of
from finetune_api.planner.explain import resolved
from finetune_api.planner.facts import PlanFacts
from finetune_api.planner.fit import STRATEGIES, Way, ways, with_way
from finetune_api.planner.gpus import gib
from finetune_api.planner.share import USUAL_BATCH, device_of, processes
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import ChoiceStatus

Choice = ChoiceStatus
"""A field by its path below spec, what it became, and why."""

FIELDS = (
    "method.lora.rank", "training.globalBatchSize", "training.epochs", "training.learningRate", "training.warmupRatio",
    "training.activationCheckpointing", "compute.strategy", "compute.microBatchTokens", "checkpoint.everySteps",
)  # fmt: skip
"""Everything that model and data decide, by its path below spec."""
_SAVE_SECONDS = 900
"""Training that may be lost at the most."""
_MOST_STEPS_UNSAVED = 500


def decide(
    spec: FineTuneJobSpec, facts: PlanFacts, *, given: FineTuneJobSpec | None = None
) -> tuple[dict[str, Any], tuple[Choice, ...]]:
    """Absent fields that model and data decide, as a part of a spec in wire form for `effective.overlay`; and a choice for each
    of them and for each that `resolve` decides. `spec` may be resolved, without what `decide` decides; `given` is then the
    one that the user wrote, whose absent fields are explained."""
    draft, decided = resolve(spec), dict[str, Any]()
    choices: list[Choice] = []
    for rule in _RULES:
        for path, value, why in rule(draft, facts):
            _put(decided, path, value)
            choices.append(_choice(path, value, why))
        draft = resolve(overlay(spec, decided))
    whole = resolve(spec, decided=decided)
    known = {choice.field for choice in choices}
    choices += [_choice(*one) for one in resolved(given or spec, whole, facts) if one[0] not in known]
    return decided, tuple(choices)


Found = list[tuple[str, Any, str]]
"""(path, value, why)."""


def _rank(spec: FineTuneJobSpec, facts: PlanFacts) -> Found:
    method = spec.method
    if method.type not in LOW_RANK or method.lora is not None or method.init_from is not None:
        return []
    return [("method.lora.rank", *hyperparameters.rank(method, facts.model, facts.data))]


def _batch(spec: FineTuneJobSpec, facts: PlanFacts) -> Found:
    if spec.training.global_batch_size is not None:
        return []
    return [("training.globalBatchSize", *hyperparameters.batch_size(spec.method.type, facts.data, processes(spec)))]


def _epochs(spec: FineTuneJobSpec, facts: PlanFacts) -> Found:
    training = spec.training
    if training.epochs is not None or training.max_steps is not None:
        return []
    return [
        (
            "training.epochs",
            *hyperparameters.epochs(spec.method.type, facts.data, training.global_batch_size or USUAL_BATCH),
        )
    ]


def _rate(spec: FineTuneJobSpec, facts: PlanFacts) -> Found:
    if spec.training.learning_rate is not None:
        return []
    return [("training.learningRate", *hyperparameters.learning_rate(spec.method, facts.model, facts.task))]


def _warmup(spec: FineTuneJobSpec, facts: PlanFacts) -> Found:
    if spec.training.warmup_ratio is not None:
        return []
    return [("training.warmupRatio", *hyperparameters.warmup_ratio(steps_of(spec, facts).steps))]


def _memory(spec: FineTuneJobSpec, facts: PlanFacts) -> Found:
    """Strategy, checkpointing and micro-batches together: the fastest that fit; where the GPU is not known, the usual ones."""
    kind, strategy = spec.training.activation_checkpointing, spec.compute.strategy
    if kind is not None and strategy is not None and spec.compute.micro_batch_tokens is not None:
        return []
    usual, capacity = resolve(spec, decided={}), capacity_of(spec)
    allowed = STRATEGIES if processes(spec) > 1 or spec.compute.offload else ("ddp",)
    found = ways(
        spec,
        facts,
        strategies=(strategy,) if strategy else allowed,
        checkpointing=(kind,) if kind else ("none", "selective", "full"),
    )
    if capacity is None or not found:
        plain = with_way(spec, strategy or usual.compute.strategy, kind or "none")
        way = next((one for one in found if (one.strategy, one.checkpointing) == _of(plain)), None)
        return _chosen(spec, plain, _unknown(spec, way))
    way = next((one for one in found if one.memory.total <= capacity), min(found, key=lambda one: one.memory.total))
    why = f"{gib(way.memory.total)} of {gib(capacity)} a GPU"
    if way.memory.total > capacity:
        why += ": the least that there is, and too much"
    before = next((one for one in reversed(found[: found.index(way)]) if one.memory.total > capacity), None)
    if before is not None and way.memory.total <= capacity:
        why += f"; {_named(before, way)} would take {gib(before.memory.total)}"
    return _chosen(spec, with_way(spec, way.strategy, way.checkpointing, way.tokens), why)


def _named(way: Way, other: Way) -> str:
    """By what it differs in: `ddp with none`, `16,384 tokens`."""
    tokens = f"{way.tokens:,} tokens"
    if (way.strategy, way.checkpointing) == (other.strategy, other.checkpointing):
        return tokens
    named = f"{way.strategy} with {way.checkpointing}"
    return named if way.tokens == other.tokens else f"{named} and {tokens}"


def _of(spec: FineTuneJobSpec) -> tuple[str | None, str | None]:
    return spec.compute.strategy, spec.training.activation_checkpointing


def _unknown(spec: FineTuneJobSpec, way: Way | None) -> str:
    size = f"{gib(way.memory.total)} a process" if way is not None else "its memory is unknown"
    if device_of(spec) == "cpu":
        return f"{size}, by its CPU memory"
    return f"{size}; with compute.gpuType the plan would say whether that fits"


def _chosen(spec: FineTuneJobSpec, made: FineTuneJobSpec, why: str) -> Found:
    found: Found = []
    if spec.compute.strategy is None:
        found.append(("compute.strategy", made.compute.strategy, why))
    if spec.training.activation_checkpointing is None:
        found.append(("training.activationCheckpointing", made.training.activation_checkpointing, why))
    if spec.compute.micro_batch_tokens is None and made.compute.micro_batch_tokens is not None:
        found.append(("compute.microBatchTokens", made.compute.micro_batch_tokens, why))
    return found


def _saving(spec: FineTuneJobSpec, facts: PlanFacts) -> Found:
    """A tenth of the training, or what takes a quarter of an hour."""
    if spec.checkpoint.every_steps is not None:
        return []
    plan = steps_of(spec, facts)
    tokens = round(plan.epochs * facts.data.tokens)
    seconds = duration.duration_of(spec, facts, steps=plan.steps, tokens=tokens).step_seconds
    tenth = max(1, -(-plan.steps // 10))
    by_time = max(1, int(_SAVE_SECONDS / max(seconds, 1e-6)))
    every = min(tenth, by_time, _MOST_STEPS_UNSAVED)
    if every == tenth:
        return [("checkpoint.everySteps", every, f"ten times over {plan.steps:,} steps")]
    minutes = every * seconds / 60
    return [("checkpoint.everySteps", every, f"about {minutes:.0f} minutes of training may be lost at the most")]


_RULES: tuple[Callable[[FineTuneJobSpec, PlanFacts], Found], ...] = (
    _batch, _rank, _epochs, _rate, _warmup, _memory, _saving,
)  # fmt: skip
"""In this order, since later ones look at what earlier ones decided."""


def _put(into: dict[str, Any], path: str, value: Any) -> None:
    *folders, name = path.split(".")
    for folder in folders:
        into = into.setdefault(folder, {})
    into[name] = value


def _choice(path: str, value: Any, why: str) -> Choice:
    return Choice(field=path, value=shown(value), why=why)


def shown(value: Any) -> str:
    """As it would be written in a manifest."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
