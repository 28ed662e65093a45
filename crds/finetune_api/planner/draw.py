"""`status.plan`: what training will do and what it will take, with a name for it and the reasons of what was decided."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from finetune_api.effective import resolve
from finetune_api.planner.decide import Choice, decide, shown
from finetune_api.planner.estimate import Estimate, estimate
from finetune_api.planner.facts import PlanFacts
from finetune_api.planner.gpus import size_of
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import PlanStatus

_FIXED = ("model", "method", "data", "training", "evaluation", "workspace", "output")
"""Groups that never change after a job was accepted."""
_LEFT_OUT = {
    "model": ("secretRef", "caBundleRef", "endpoint", "region"),
    "workspace": ("secretRef", "caBundleRef", "endpoint", "region"),
    "output": ("secretRef", "caBundleRef", "endpoint", "region"),
}
"""Credentials and mirrors, which do not change what is done."""
_CHOICES = 32


def draw(
    spec: FineTuneJobSpec,
    facts: PlanFacts,
    decided: dict[str, Any],
    plan: PlanStatus | None,
    *,
    given: FineTuneJobSpec | None = None,
) -> PlanStatus:
    """The whole plan of a job.

    `spec` is resolved over the platform's defaults, with or without what was decided; `given` is the one that the user
    wrote, whose absent fields are explained (absent: `spec`). `decided` comes from prepare or `decide`. `plan` has steps and
    tokens as prepare counted them, or is None: they are computed.
    """
    anew, choices = decide(spec if given is None else _undecided(given, spec), facts, given=given)
    whole = resolve(spec, decided=_over(decided, anew))
    counted = plan or PlanStatus()
    made = estimate(whole, facts, tokens=counted.tokens, steps=counted.steps)
    steps = counted.steps or made.steps.steps
    time = made.duration
    return PlanStatus(
        digest=digest_of(whole, facts, steps),
        steps=steps,
        epochs=counted.epochs or made.steps.epochs,
        tokens=made.tokens,
        global_batch_size=counted.global_batch_size or whole.training.global_batch_size,
        checkpoint_every_steps=counted.checkpoint_every_steps or made.steps.checkpoint_every_steps,
        validate_every_steps=counted.validate_every_steps or made.steps.validate_every_steps,
        max_new_tokens=counted.max_new_tokens,
        parameters=made.parameters,
        trainable_parameters=made.trainable,
        memory_per_gpu=quantity(made.memory.total),
        host_memory_per_pod=quantity(made.host.total),
        storage=quantity(made.storage),
        duration=spoken(time.seconds),
        duration_seconds=round(time.seconds),
        longest_seconds=round(time.longest),
        gpu_hours=round(made.gpu_hours, 4),
        cost=None if made.cost is None else round(made.cost, 2),
        basis=time.basis,
        warning=made.warning or _too_little_host_memory(whole, made) or _too_long(whole, made),
        choices=_as_decided(choices, decided)[:_CHOICES] or None,
    )


def _over(above: dict[str, Any], below: dict[str, Any]) -> dict[str, Any]:
    """What was decided, and what nobody decided yet."""
    both = {**below, **above}
    for name, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(name), dict):
            both[name] = _over(value, below[name])
    return both


def _undecided(given: FineTuneJobSpec, spec: FineTuneJobSpec) -> FineTuneJobSpec:
    """As the user wrote it, with what the platform adds."""
    return given.model_copy(
        update={
            "compute": given.compute.model_copy(update={"gpu_type": spec.compute.gpu_type}),
            "budget": given.budget.model_copy(update={"gpu_hour_price": spec.budget.gpu_hour_price}),
        }
    )


def _as_decided(choices: tuple[Choice, ...], decided: dict[str, Any]) -> list[Choice]:
    """With the values that count: prepare may have known less, or more, than is known now."""
    out = []
    for choice in choices:
        value: Any = decided
        for name in choice.field.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None and shown(value) != choice.value:
            choice = choice.model_copy(update={"value": shown(value), "why": "decided when the data was prepared"})
        out.append(choice)
    return out


def digest_of(spec: FineTuneJobSpec, facts: PlanFacts, steps: int) -> str:
    """Of what an approval is for: what is trained on what, where, for how long and at what price. Measurements, limits and
    credentials do not count. `spec` is resolved and decided."""
    wire = spec.wire()
    budget = wire.get("budget", {})
    content = {
        "spec": {name: _without(wire.get(name), _LEFT_OUT.get(name, ())) for name in _FIXED},
        "compute": wire.get("compute"),
        "price": budget.get("gpuHourPrice"),
        "model": facts.model.wire(),
        "data": facts.data.wire(),
        "task": facts.task,
        "steps": steps,
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _without(value: Any, names: tuple[str, ...]) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: one for name, one in value.items() if name not in names}


def _too_little_host_memory(spec: FineTuneJobSpec, made: Estimate) -> str | None:
    """Of the memory that the user set for the training pods."""
    asked = spec.pods.of("train").resources if spec.pods is not None else None
    for kind, amounts in (("limits", asked and asked.limits), ("requests", asked and asked.requests)):
        memory = (amounts or {}).get("memory")
        if memory is not None and size_of(memory) < made.host.total:
            what = f"spec.pods.train.resources.{kind}.memory is {memory}"
            return (
                f"{what}, and a training pod needs {quantity(made.host.total)} of host memory by the estimate: raise it"
            )
    return None


def _too_long(spec: FineTuneJobSpec, made: Estimate) -> str | None:
    """What should be known of a plan that is only a guess."""
    limit = spec.budget.max_seconds
    if limit is not None and made.duration.seconds <= limit < made.duration.longest:
        return f"may take up to {spoken(made.duration.longest)}: then it stops at spec.budget.maxDuration {spec.budget.max_duration}"
    return None


def quantity(size: int) -> str:
    """As Kubernetes writes it, with one decimal: 41.3Gi."""
    return f"{size / 2**30:.1f}Gi" if size >= 2**30 else f"{size / 2**20:.0f}Mi"


def spoken(seconds: float) -> str:
    """3d4h, 2h05m, 12m30s, 45s."""
    whole = round(seconds)
    days, hours, minutes = whole // 86400, whole % 86400 // 3600, whole % 3600 // 60
    if days:
        return f"{days}d{hours:02}h"
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{whole % 60:02}s" if minutes else f"{whole}s"
