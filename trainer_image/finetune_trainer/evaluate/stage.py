"""Base against tuned on the test split, when training is done."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from finetune_trainer import sealed
from finetune_trainer.data.digests import json_digest
from finetune_trainer.data.shards import Shards
from finetune_trainer.evaluate import compare
from finetune_trainer.evaluate.measure import Measured, measure, wanted
from finetune_trainer.evaluate.untouched import has_base, untouched
from finetune_trainer.stage import StageContext
from finetune_trainer.tasks.base import Task
from finetune_trainer.train.gang import Gang
from finetune_trainer.train.watchdog import Watchdog

BASE_FOLDER = "base-evaluation"
_BASE_FILE = "measured.json"


class Evaluation:
    """Measures the base where it still exists: under a disabled adapter, or, for full fine-tuning, before step 1."""

    def __init__(self, context: StageContext, gang: Gang, shards: Shards, task: Task, watchdog: Watchdog) -> None:
        self._context = context
        self._gang = gang
        self._shards = shards
        self._task = task
        self._watchdog = watchdog
        self._spec = context.config.spec.evaluation
        self._asked = json_digest(self._spec.model_dump(mode="json", exclude_defaults=True))
        self._wanted = wanted(shards, self._spec)
        self._base_folder = context.config.layout.root / BASE_FOLDER
        self._rows_done = 0
        self._communicates = False
        per_model = shards.test.rows * self._wanted.whole_split + len(self._wanted.rows)
        self._rows_total = per_model * (2 if self._spec.baseline else 1)

    @property
    def measures(self) -> bool:
        """Whether anything will be measured."""
        return self._rows_total > 0

    def base_before_training(self, module: nn.Module, *, module_communicates: bool = False) -> None:
        """For full fine-tuning: measure the untouched model once, and keep that for every later attempt. Raises Stopped."""
        self._communicates = module_communicates
        if not (self._spec.baseline and self.measures) or self._gang.on_first(self._kept_base) is not None:
            return
        self._context.progress.update(stage="evaluate", step=0, total_steps=self._rows_total // 2, force=True)
        measured = self._measure(module, self._count_before)
        self._gang.on_first(lambda: self._keep_base(measured))

    def run(
        self, module: nn.Module, tokenizer: Any, *, share: tuple[float, float], module_communicates: bool = False
    ) -> dict[str, Any] | None:
        """The content of `evaluation.json` on rank 0, None elsewhere. `share` is the part (from, to) of the stage's percentage. Raises Stopped.

        `module_communicates`: see `train.engines.engine.Engine`.
        """
        self._share = share
        self._communicates = module_communicates
        self._rows_done = 0
        self._began = time.monotonic()
        self._context.progress.update(stage="evaluate", step=0, total_steps=self._rows_total, force=True)
        tuned = self._measure(module, self._count)
        base = None
        if self._spec.baseline:
            if has_base(module):
                with untouched(module):
                    base = self._measure(module, self._count)
            else:
                base = self._gang.on_first(self._kept_base)
        if not self._gang.is_first:
            return None
        return compare.evaluation(self._shards, tokenizer, self._wanted, tuned, base)

    def _measure(self, module: nn.Module, count: Callable[[int], None]) -> Measured:
        return measure(
            self._gang,
            module,
            self._shards,
            self._task,
            self._wanted,
            on_rows=count,
            on_token=self._watchdog.beat,
            module_communicates=self._communicates,
        )

    def _count_before(self, rows: int) -> None:
        self._watchdog.beat()
        self._context.progress.update(step=self._context.progress.state.step + rows)

    def _count(self, rows: int) -> None:
        self._watchdog.beat()
        self._rows_done += rows
        low, high = self._share
        done = min(1.0, self._rows_done / max(1, self._rows_total))
        left = (time.monotonic() - self._began) * (1 - done) / done if done else None
        self._context.progress.update(step=self._rows_done, percent=low + (high - low) * done, eta_seconds=left)

    def _kept_base(self) -> Measured | None:
        with contextlib.suppress(sealed.Torn):
            manifest = sealed.verify(self._base_folder)
            if manifest.get("evaluation", self._asked) != self._asked:
                return None  # measured by another spec.evaluation: not comparable
            return Measured.from_json(_read(self._base_folder / _BASE_FILE))
        return None

    def _keep_base(self, measured: Measured) -> None:
        manifest = {"kind": "base-evaluation", "format": 1, "evaluation": self._asked}
        with sealed.sealing(self._base_folder, manifest) as temporary:
            sealed.write_json(temporary / _BASE_FILE, measured.to_json())


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_bytes())
