"""Predicted against measured peak memory, case by case."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from finetune_api.planner.facts import PlanFacts
from finetune_api.planner.memory import memory_of
from finetune_api.spec import FineTuneJobSpec

from benchmarks.plan.cases import SHAPES, VOCABULARY, Case
from benchmarks.plan.training import Training, Watch, write_base, write_rows

STEPS = 2
"""The optimizer's states, and on the host the copy of a checkpoint that is being written, exist from the first step's end."""

GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "262144"}
"""glibc's allocator gives what is freed back to the system: resident memory is then what is allocated."""


@dataclass(frozen=True)
class Compared:
    """Bytes. `beside` is what the same training takes with next to no model, which is taken off what was measured.

    `spec` and `facts` are those that the prediction is made from.
    """

    case: Case
    spec: FineTuneJobSpec
    facts: PlanFacts
    peak: int
    beside: int

    @property
    def predicted(self) -> int:
        memory = memory_of(self.spec, self.facts)
        return memory.total - memory.fragmentation

    @property
    def measured(self) -> int:
        return self.peak - self.beside

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


class Bench:
    """Measures cases, and what each takes without its model, once."""

    def __init__(self) -> None:
        self._beside: dict[str, int] = {}

    def compare(self, case: Case) -> Compared:
        peak, spec, facts = measure(case)
        empty = replace(
            case,
            shape="nothing",
            length=64,
            rows=2 * case.processes,
            method=_same_kind(case),
            training=_optimizer(case),
        )
        if empty.name not in self._beside:
            size, own, little = measure(empty)
            self._beside[empty.name] = size - memory_of(own, little).total
        return Compared(case, spec, facts, peak, self._beside[empty.name])


def _same_kind(case: Case) -> dict[str, object]:
    return {"type": case.method["type"]}


def _optimizer(case: Case) -> dict[str, object]:
    """Those of its settings that load code."""
    return {name: value for name, value in case.training.items() if name == "optimizer"}


def measure(case: Case) -> tuple[int, FineTuneJobSpec, PlanFacts]:
    """Peak of the rank that takes most, in bytes."""
    folder = Path(tempfile.mkdtemp(prefix="finetune-plan-"))
    try:
        training = Training(folder, _spec(case))
        write_base(folder / "models" / "base", SHAPES[case.shape], vocabulary=VOCABULARY)
        write_rows(folder / "datasets" / "rows.jsonl", [case.length] * (case.rows * STEPS))
        training.stage("prepare")
        watch = Watch()
        training.stage("train", watch, **GIVEN_BACK)
        return watch.end(), training.spec, training.facts()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _spec(case: Case) -> dict[str, object]:
    return {
        "method": case.method,
        "training": {"maxSteps": STEPS, "globalBatchSize": case.rows, "learningRate": 1e-4} | case.training,
        "compute": {"device": "cpu", "processesPerNode": case.processes, "strategy": case.strategy},
        "checkpoint": {"everySteps": 1},
        "data": {"format": "text", "maxLength": max(case.length, 8)},
    }
