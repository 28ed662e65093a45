"""Strategies, methods, GPU types and prices side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from pydantic import ValidationError

from finetune_api.combinations import refused
from finetune_api.effective import resolve
from finetune_api.errors import sentences
from finetune_api.method import MethodType
from finetune_api.planner.decide import decide
from finetune_api.planner.estimate import Estimate, estimate
from finetune_api.planner.facts import PlanFacts
from finetune_api.planner.fit import STRATEGIES
from finetune_api.planner.gpus import GPUS
from finetune_api.spec import FineTuneJobSpec

By = Literal["strategy", "method", "gpu"]

_METHODS: tuple[MethodType, ...] = ("lora", "qlora", "dora", "prefix", "prompt", "full")
_COMMON_GPUS = ("b200", "h200", "h100", "mi300x", "a100-80gb", "a100-40gb", "l40s", "a10", "l4", "t4")


@dataclass(frozen=True, slots=True)
class Row:
    """`name` is what differs. Where the combination is refused, `refused` says why and there is no estimate."""

    name: str
    estimate: Estimate | None
    refused: str | None = None
    price: float | None = None


def compare(
    spec: FineTuneJobSpec,
    facts: PlanFacts,
    *,
    by: By,
    names: tuple[str, ...] | None = None,
    prices: Mapping[str, float] | None = None,
) -> list[Row]:
    """A row for each strategy, method or GPU type (`names`, or the usual ones). `prices`: of a GPU hour, by GPU type.

    What the spec leaves out is decided anew in each row. Raises ValueError for a name that is not known.
    """
    known = {"strategy": STRATEGIES, "method": _METHODS, "gpu": tuple(GPUS)}[by]
    wanted = names or (_COMMON_GPUS if by == "gpu" else known)
    for name in wanted:
        if name not in known:
            raise ValueError(f"{name!r} is no {by}: there are {', '.join(known)}")
    return [_row(name, partial(_CHANGES[by], spec, name, prices or {}), facts) for name in wanted]


def _row(name: str, change: Callable[[], FineTuneJobSpec], facts: PlanFacts) -> Row:
    try:
        changed = change()
    except ValidationError as error:
        return Row(name, None, sentences(error)[0])
    why = next(refused(changed), None)
    whole = changed if why else resolve(changed, decided=decide(changed, facts)[0])
    why = why or next(refused(whole), None)
    if why is not None:
        return Row(name, None, why.message)
    return Row(name, estimate(whole, facts), price=whole.budget.gpu_hour_price)


def with_gpu(spec: FineTuneJobSpec, name: str) -> FineTuneJobSpec:
    """On GPUs of a type, with the memory that they have."""
    return _with(spec, "compute", {"gpu_type": name, "gpu_memory": None})


def with_price(spec: FineTuneJobSpec, price: float | None) -> FineTuneJobSpec:
    """Of a GPU hour."""
    return _with(spec, "budget", {"gpu_hour_price": price})


def _strategy(spec: FineTuneJobSpec, name: str, _: Mapping[str, float]) -> FineTuneJobSpec:
    return _with(spec, "compute", {"strategy": name})


def _method(spec: FineTuneJobSpec, name: str, _: Mapping[str, float]) -> FineTuneJobSpec:
    """Settings of another method are left out; the learning rate is decided anew."""
    if spec.method.type == name:
        return spec
    wire = spec.wire()
    kept = {"lora": wire["method"].get("lora")} if name in ("lora", "qlora", "dora") else {}
    wire["method"] = {"type": name} | {key: value for key, value in kept.items() if value is not None}
    wire.get("training", {}).pop("learningRate", None)
    return FineTuneJobSpec.model_validate(wire)


def _gpu(spec: FineTuneJobSpec, name: str, prices: Mapping[str, float]) -> FineTuneJobSpec:
    """With prices at hand the spec's own, of another GPU, does not count."""
    changed = with_gpu(spec, name)
    return with_price(changed, prices.get(name)) if prices else changed


def _with(spec: FineTuneJobSpec, group: str, update: dict[str, Any]) -> FineTuneJobSpec:
    return spec.model_copy(update={group: getattr(spec, group).model_copy(update=update)})


_CHANGES: dict[str, Callable[[FineTuneJobSpec, str, Mapping[str, float]], FineTuneJobSpec]] = {
    "strategy": _strategy, "method": _method, "gpu": _gpu,
}  # fmt: skip
