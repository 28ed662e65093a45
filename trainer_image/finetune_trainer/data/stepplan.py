"""Which rows each optimizer step takes: a pure function of the data and the hyperparameters.

Neither the world size nor the micro-batch enters, so that a run that resumes on other machines, or after a notch down,
takes the same rows in the same steps. Every row comes once an epoch; the last step of an epoch is short when the rows do
not divide. An epoch's order is the stable argsort of a counter-based random stream (Philox), which no library version changes.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from finetune_trainer.data.digests import json_digest

FILE = "plan.json"


@dataclass(frozen=True, slots=True)
class StepPlan:
    """`steps` optimizer steps over `train_rows` rows; step numbers count from 0, so step s is taken when s steps are done."""

    steps: int
    train_rows: int
    global_batch_size: int
    key: str = field(repr=False)
    """Hex digest of what the order depends on: see `plan_key`."""

    def __post_init__(self) -> None:
        if min(self.steps, self.train_rows, self.global_batch_size) < 1:
            raise ValueError("a step plan needs at least one step, one row and a batch of one")

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.train_rows / self.global_batch_size)

    def epoch(self, step: int) -> int:
        """The epoch (from 0) that `step` belongs to."""
        return step // self.steps_per_epoch

    def rows(self, step: int) -> np.ndarray:
        """int64 ids of the rows of the training split that `step` (0 <= step < steps) takes; never empty."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} is not in a plan of {self.steps} steps")
        epoch, within = divmod(step, self.steps_per_epoch)
        start = within * self.global_batch_size
        return _order(self.key, epoch, self.train_rows)[start : start + self.global_batch_size]

    def to_json(self) -> dict[str, Any]:
        return {"kind": "shuffle", "format": 1, **asdict(self)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> StepPlan:
        """Raises ValueError for a plan of another kind or format."""
        if (value.get("kind"), value.get("format")) != ("shuffle", 1):
            raise ValueError(f"{FILE}: this version reads shuffle plans of format 1 only")
        return cls(value["steps"], value["train_rows"], value["global_batch_size"], value["key"])


def plan_key(*, data_digest: str, seed: int, max_length: int, global_batch_size: int) -> str:
    """What an epoch's order depends on, beside the epoch's number."""
    return json_digest(["step-plan-1", data_digest, seed, max_length, global_batch_size])


def path_in(folder: Path) -> Path:
    return folder / FILE


@lru_cache(maxsize=2)
def _order(key: str, epoch: int, rows: int) -> np.ndarray:
    seed = hashlib.sha256(f"{key}/{epoch}".encode()).digest()
    stream = np.random.Philox(key=np.frombuffer(seed[:16], dtype="<u8"))
    order = np.argsort(stream.random_raw(rows), kind="stable").astype(np.int64, copy=False)
    order.setflags(write=False)
    return order
