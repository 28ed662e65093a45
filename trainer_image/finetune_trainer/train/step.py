"""One optimizer step: which rows this rank takes, in which micro-batches, and what is said when one of them goes wrong."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from finetune_api.compute import MICRO_BATCH_TOKENS
from torch import nn

from finetune_trainer.data.shards import Shards
from finetune_trainer.errors import BadInput
from finetune_trainer.stage import StageContext
from finetune_trainer.tasks.base import Batch, Task
from finetune_trainer.train import micro_batches, nonfinite, shortage
from finetune_trainer.train.engines.engine import Engine
from finetune_trainer.train.gang import Gang
from finetune_trainer.train.neftune import Neftune
from finetune_trainer.train.rank_times import ForwardTime
from finetune_trainer.train.seeds import mixed
from finetune_trainer.train.watchdog import Watchdog

_ROWS_NAMED = 3


@dataclass(frozen=True, slots=True)
class Taken:
    """`nll`: sum of this rank's losses in nats; `norm`: of the gradients, before clipping. Both may lie on the device. Tokens are those of the whole step."""

    nll: torch.Tensor
    norm: torch.Tensor | float
    trained_tokens: int
    row_tokens: int


class Stepper:
    """Takes the steps of the plan. Collective, like everything that an engine does."""

    def __init__(
        self, context: StageContext, gang: Gang, engine: Engine, shards: Shards, task: Task, watchdog: Watchdog
    ) -> None:
        self._context = context
        self._training = context.config.spec.training
        self._gang = gang
        self._engine = engine
        self._shards = shards
        self._task = task
        self._watchdog = watchdog
        self._plan = shards.plan()
        self._lengths = shards.train.lengths()
        self._budget = context.config.spec.compute.micro_batch_tokens or MICRO_BATCH_TOKENS[gang.device.type]
        self._neftune = (
            Neftune(
                engine.module,
                alpha=self._training.neftune_alpha,
                seed=self._training.seed,
                rank=gang.rank,
                device=gang.device,
            )
            if self._training.neftune_alpha
            else None
        )
        self.forward_time = ForwardTime(gang.device)
        self._phase = ""
        self._parts: list[tuple[np.ndarray, bool]] = []
        self._turn = -1
        self._search: nonfinite.Search | None = None

    def first_rows(self, step: int) -> list[int]:
        """The rows that this rank takes in `step`."""
        return micro_batches.divide(self._plan.rows(step), self._lengths, self._gang.world_size)[
            self._gang.rank
        ].tolist()

    def take(self, step: int, rate: float) -> Taken:
        """Step number `step`, from 0. Raises OutOfMemory, with what was on its way."""
        with shortage.explaining(
            self._context, lambda: f"{self._phase} of step {step + 1}", lambda: self._lengths[self._rows]
        ):
            try:
                nll, tokens = self._accumulate(step)
                self._phase, self._turn = "the update", -1
                norm = self._engine.step(rate)
            except RuntimeError as error:
                if "does not have a deterministic implementation" in str(error):
                    raise self._not_deterministic(error) from error
                raise
        return Taken(nll, norm, tokens, int(self._lengths[self._plan.rows(step)].sum()))

    def search(self, step: int) -> tuple[int, str] | None:
        """Take the micro-batches of `step` once more and look where numbers stop being finite: rank and words. Collective.

        None when all of them are finite this time. The weights must still be those from before the step; if not, that
        is what is said.
        """
        broken = self._gang.gather(nonfinite.broken_weights(self._engine.module))
        if any(broken):
            rank, name = next((rank, name) for rank, name in enumerate(broken) if name)
            return rank, f"an update with it was made before it was seen, so that now {name} is not finite either"
        with nonfinite.searching(self._engine.module) as self._search:
            self._accumulate(step)
        found = self._search.found
        own = None if found is None else (found is not self._search.forward, found.said + self._sources(found))
        said = [(*words, rank) for rank, words in enumerate(self._gang.gather(own)) if words is not None]
        if not said:
            return None
        _, words, rank = min(said, key=lambda one: (one[0], one[2]))
        return rank, words

    def _accumulate(self, step: int) -> tuple[torch.Tensor, int]:
        """Forward and backward of the step: this rank's loss, and the tokens that the whole step learns."""
        rows = self._plan.rows(step)
        self._phase, self._turn = "making the micro-batches", -1
        self._parts = self._micro_batches(rows)
        tokens = self._task.weight(self._shards.train, rows)
        torch.manual_seed(mixed(self._training.seed, step, self._gang.rank))
        if self._neftune is not None:
            self._neftune.begin(step)
        makers: list[Callable[[], Batch]] = [
            functools.partial(self._batch, part, counted) for part, counted in self._parts
        ]
        return self._engine.accumulate(makers, self._loss, 1.0 / max(1, tokens)), tokens

    def _batch(self, rows: np.ndarray, counted: bool) -> Batch:
        self._watchdog.beat()
        return self._task.collate(self._shards.train, rows, counted=counted)

    def _loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Called once a micro-batch, in their order."""
        self._turn += 1
        if self._search is not None:
            self._search.turn = self._turn
        if self._neftune is not None:
            self._neftune.prepare(batch, self._lengths[self._rows])
        self._phase = "the forward pass"
        with self.forward_time.running():
            value = self._task.loss(model, batch, label_smoothing=self._training.label_smoothing)
        if self._neftune is not None:
            self._neftune.check()
        self._phase = "the backward pass"
        return value

    @property
    def _rows(self) -> np.ndarray:
        """Of the micro-batch that is on its way."""
        return self._parts[self._turn][0] if 0 <= self._turn < len(self._parts) else np.zeros(0, dtype=np.int64)

    def _micro_batches(self, rows: np.ndarray) -> list[tuple[np.ndarray, bool]]:
        shares = micro_batches.divide(rows, self._lengths, self._gang.world_size)
        packed = getattr(self._task, "packs", False)
        groups = [micro_batches.cut(share, self._lengths, self._budget, packed=packed) for share in shares]
        count = max(len(each) for each in groups) if self._engine.even else 1
        shortest = int(rows[self._lengths[rows].argmin()])
        return micro_batches.at_least(groups[self._gang.rank], count, filler=shortest)

    def _sources(self, found: nonfinite.Spoilt) -> str:
        """Files and lines of the rows that it comes from, or of the whole micro-batch, if they are few."""
        rows = self._parts[found.turn][0]
        bounds = np.cumsum(self._lengths[rows])
        if found.shape and found.shape[0] == len(rows):
            named = [int(rows[row]) for row, _ in found.places]
        elif found.shape == (1, int(bounds[-1])):  # packed: end to end
            named = [int(rows[np.searchsorted(bounds, column, side="right")]) for _, column in found.places]
        else:
            named = rows.tolist()
        named = list(dict.fromkeys(named))
        if len(named) > _ROWS_NAMED:
            return ""
        places = ", ".join("{}:{}".format(*self._shards.train.source(row)) for row in named)
        return f", with row{'s' * (len(named) > 1)} {places}"

    def _not_deterministic(self, error: RuntimeError) -> BadInput:
        return BadInput(
            f"training.deterministic: {str(error).split('.')[0].split(',')[0]}, in {self._phase}",
            code="InvalidSpec",
            remedy="remove training.deterministic",
        )
