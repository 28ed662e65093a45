"""Recover from running out of memory: one notch down the planner's ladder for each attempt, with the same global batch."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_api.effective import PlatformDefaults
from finetune_api.planner.facts import PlanFacts
from finetune_api.planner.gpus import size_of
from finetune_api.planner.host import host_memory_of
from finetune_api.planner.ladder import Bottom, Notch, next_gpu_notch, next_host_notch
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Stage
from pydantic import ValidationError

from finetune_operator.domain.builders.job import pod_settings
from finetune_operator.domain.builders.resources import resources
from finetune_operator.domain.observed import PodView
from finetune_operator.domain.plan_builder import PlanBuilder


def take_notch(builder: PlanBuilder, stage: Stage, pods: Sequence[PodView]) -> Notch | Bottom:
    """Record the next notch for a stage that ran out of memory, within spec.retry.oom. Bottom: there is none."""
    taken, allowed = builder.state.notches or [], builder.wanted.retry.oom
    if len(taken) >= allowed:
        tried = f"spec.retry.oom {allowed} is used up" if allowed else "spec.retry.oom is 0"
        return Bottom(f"{tried}: raise it to let the operator adjust memory")
    notch = _next(builder, stage, pods, taken)
    if isinstance(notch, Notch):
        builder.state.notches = [*taken, notch]
        builder.resolve_and_show()
    return notch


def _next(builder: PlanBuilder, stage: Stage, pods: Sequence[PodView], taken: Sequence[Notch]) -> Notch | Bottom:
    """A container that reached its limit is killed (OOMKilled); a GPU that is full ends the trainer with exit code 4."""
    spec, given, facts = builder.planned_spec, builder.wanted, _facts(builder)
    killed = any(pod.ended is not None and pod.ended.reason == "OOMKilled" for pod in pods)
    if killed or facts is None or stage != "train":
        asked = resources(spec, stage, pod_settings(spec, stage).resources, planned_host_memory(builder, spec))
        return next_host_notch(spec, facts, taken, given=given, stage=stage, resources=asked, cap=_cap(builder))
    return next_gpu_notch(spec, facts, taken, given=given)


def planned_host_memory(builder: PlanBuilder, spec: FineTuneJobSpec) -> int | None:
    """Bytes that a training pod of `spec` requests where the user sets none; None without facts. Never more than the platform allows."""
    facts, cap = _facts(builder), _cap(builder)
    if facts is None:
        return None
    planned = host_memory_of(spec, facts).total
    return planned if cap is None else min(planned, cap)


def _cap(builder: PlanBuilder) -> int | None:
    most = PlatformDefaults.model_validate(builder.state.defaults or {}).max_pod_memory
    return None if most is None else size_of(most)


def _facts(builder: PlanBuilder) -> PlanFacts | None:
    try:
        return None if builder.state.facts is None else PlanFacts.model_validate(builder.state.facts)
    except ValidationError:  # a pod's word is not trusted
        return None
