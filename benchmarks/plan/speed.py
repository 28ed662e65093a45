"""Planned against actual: steps and tokens of a real run, and its time by what an earlier run reached."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from finetune_api.planner.draw import draw
from finetune_api.planner.facts import Measured
from finetune_api.status import PlanStatus

from benchmarks.plan.cases import SHAPES, VOCABULARY
from benchmarks.plan.training import Training, write_base, write_rows

ROWS = 300
SHAPE = "llama-3m"
ALONE = {"OMP_NUM_THREADS": "1"}
"""Threads of one process that wait for each other on a busy machine would measure the others."""


@dataclass(frozen=True)
class Run:
    """Of one run: planned and actual. Seconds are those of the train stage's process."""

    planned_steps: int
    steps: int
    planned_tokens: int
    tokens: int
    planned_seconds: float
    longest_seconds: float
    seconds: float
    basis: str


def runs(method: dict[str, object]) -> list[Run]:
    """Two of the same job on the same workspace: the second is planned from what the first measured."""
    folder = Path(tempfile.mkdtemp(prefix="finetune-plan-"))
    try:
        write_base(folder / "models" / "base", SHAPES[SHAPE], vocabulary=VOCABULARY)
        draws = random.Random(0)
        (folder / "datasets").mkdir()
        write_rows(
            folder / "datasets" / "rows.jsonl",
            [min(700, max(8, round(draws.lognormvariate(5, 0.6)))) for _ in range(ROWS)],
        )
        return [_run(folder, method, f"run{number}") for number in (1, 2)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(folder: Path, method: dict[str, object], name: str) -> Run:
    spec = {
        "method": method,
        "training": {"epochs": 1, "globalBatchSize": 8},
        "compute": {"device": "cpu", "strategy": "ddp"},
        "data": {"format": "text", "split": {"train": 0.8, "validation": 0.1, "test": 0.1}},
    }
    training = Training(folder, spec, run=name)
    training.stage("prepare")
    manifest = training.manifest
    counted = PlanStatus.model_validate(manifest["plan"])
    facts = training.facts()
    known = next(iter((folder / "scratch" / "throughput").glob("*.json")), None)
    if known is not None:
        facts = facts.model_copy(update={"measured": Measured.model_validate_json(known.read_text())})
    # Only what is computed from the data's numbers: prepare's own count is what training does, and is compared with it.
    plan = draw(training.spec, facts, manifest.get("decided", {}), None)
    seconds = training.stage("train", **ALONE)
    lines = (training.config("train").layout.attempt(1) / "history.jsonl").read_text().splitlines()
    done = [json.loads(line) for line in lines]
    return Run(
        planned_steps=plan.steps or 0,
        steps=max(line["step"] for line in done),
        planned_tokens=counted.tokens or 0,
        tokens=_tokens_of(training),
        planned_seconds=plan.duration_seconds or 0,
        longest_seconds=plan.longest_seconds or 0,
        seconds=seconds,
        basis=plan.basis or "",
    )


def _tokens_of(training: Training) -> int:
    """That the steps really took, by the plan of rows and their lengths."""
    from finetune_trainer.data.shards import Shards

    shards = Shards.open(training.config("train").layout.prepared)
    plan, lengths = shards.plan(), shards.train.lengths()
    return sum(int(lengths[plan.rows(step)].sum()) for step in range(plan.steps))
