"""The training loop: planned steps, validation, checkpoints, and stopping at a step's end."""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass

import numpy as np
import torch

from finetune_trainer.data.shards import Shards
from finetune_trainer.errors import Diverged, Stopped
from finetune_trainer.evaluate.nll import split_loss
from finetune_trainer.stage import StageContext
from finetune_trainer.tasks.base import Batch, Task
from finetune_trainer.train import micro_batches, saving
from finetune_trainer.train.checkpoint import Checkpoint, CheckpointStore
from finetune_trainer.train.engines.engine import Engine
from finetune_trainer.train.gang import Gang
from finetune_trainer.train.history import History
from finetune_trainer.train.reporting import Reporter, Told
from finetune_trainer.train.schedule import learning_rate
from finetune_trainer.train.watchdog import Watchdog


@dataclass(slots=True)
class Interval:
    """What was done since the last log line. `nll` and `bad_step` lie on the device, and are read only when it is written."""

    nll: torch.Tensor
    bad_step: torch.Tensor
    trained_tokens: int = 0
    row_tokens: int = 0
    steps: int = 0
    began: float = 0.0
    elsewhere: float = 0.0
    """Seconds that validation and checkpoints took."""

    @classmethod
    def empty(cls, device: torch.device) -> Interval:
        nll, bad = torch.zeros((), dtype=torch.float64, device=device), torch.full((), -1, device=device)
        return cls(nll, bad, began=time.perf_counter())


class TrainLoop:
    """One attempt's way from step `start` to the last step."""

    def __init__(
        self,
        context: StageContext,
        gang: Gang,
        engine: Engine,
        shards: Shards,
        task: Task,
        store: CheckpointStore | None,
        history: History,
        watchdog: Watchdog,
        *,
        best: Checkpoint | None,
    ) -> None:
        self._context = context
        self._training = context.config.spec.training
        self._gang = gang
        self._engine = engine
        self._shards = shards
        self._task = task
        self._plan = shards.plan()
        self._store = store
        self._watchdog = watchdog
        self._best_loss = best.eval_loss if best else None
        self._lengths = shards.train.lengths()
        self._budget = micro_batches.TOKEN_BUDGET[gang.device.type]
        self._interval = Interval.empty(gang.device)
        self._log_every = max(1, min(10, self._plan.steps // 50))
        self._validate_every = shards.resolved["validate_every_steps"] if shards.validation.rows else None
        # The spec's own word may have changed since the data was prepared.
        self._checkpoint_every = context.config.spec.checkpoint.every_steps or shards.resolved["checkpoint_every_steps"]
        self._reporter = Reporter(
            context, shards, history, validate_every=self._validate_every, checkpoint_every=self._checkpoint_every
        )
        self._schedule = functools.partial(
            learning_rate,
            steps=self._plan.steps,
            peak=self._training.learning_rate,
            schedule=self._training.schedule,
            warmup_ratio=self._training.warmup_ratio,
        )
        self._loss = functools.partial(task.loss, label_smoothing=self._training.label_smoothing)
        self._rate = 0.0
        self._norm: torch.Tensor | float = 0.0

    def first_rows(self, step: int) -> list[int]:
        """The rows that this rank takes in `step`."""
        return micro_batches.divide(self._plan.rows(step), self._lengths, self._gang.world_size)[
            self._gang.rank
        ].tolist()

    def run(self, resumed: Checkpoint | None) -> None:
        """Train to the end. Raises Stopped after a checkpoint was sealed, Diverged when the loss is no number any more."""
        start = resumed.step if resumed else 0
        if resumed and self._validation_due(start) and resumed.eval_loss is None:
            self._validate_and_save(start)  # a stop came before it
        self._engine.module.train()
        self._interval = Interval.empty(self._gang.device)
        for step in range(start, self._plan.steps):
            self._step(step)
            done = step + 1
            stop = self._gang.stop_agreed()
            validates, saves = self._validation_due(done), self._save_due(done)
            if stop or validates or saves or done == 1 or done % self._log_every == 0:
                self._tell(done)  # before anything is saved: what is not finite must not be
            if stop:
                self._save(done, None)
                raise self._stopped(done)
            if validates:
                self._validate_and_save(done)
            elif saves:
                self._save(done, None)

    def _step(self, step: int) -> None:
        began = time.perf_counter()
        self._gang.propose_stop()
        rows = self._plan.rows(step)
        parts = self._micro_batches(rows)
        tokens = self._task.weight(self._shards.train, rows)
        torch.manual_seed(_mix(self._training.seed, step, self._gang.rank))
        makers = [functools.partial(self._batch, part, counted) for part, counted in parts]
        nll = self._engine.accumulate(makers, self._loss, 1.0 / max(1, tokens))
        self._rate = self._schedule(step)
        self._norm = self._engine.step(self._rate)
        now = self._interval
        now.nll += nll
        good = torch.isfinite(nll + self._norm)
        now.bad_step = torch.where((now.bad_step < 0) & ~good, step + 1, now.bad_step)
        now.trained_tokens += tokens
        now.row_tokens += int(self._lengths[rows].sum())
        now.steps += 1
        self._watchdog.beat(seconds=time.perf_counter() - began)

    def _batch(self, rows: np.ndarray, counted: bool) -> Batch:
        self._watchdog.beat()
        return self._task.collate(self._shards.train, rows, counted=counted)

    def _micro_batches(self, rows: np.ndarray) -> list[tuple[np.ndarray, bool]]:
        shares = micro_batches.divide(rows, self._lengths, self._gang.world_size)
        groups = [micro_batches.group(share, self._lengths, self._budget) for share in shares]
        count = max(len(each) for each in groups) if self._engine.even else 1
        shortest = int(rows[self._lengths[rows].argmin()])
        return micro_batches.at_least(groups[self._gang.rank], count, filler=shortest)

    def _tell(self, done: int) -> None:
        """The one place where the host waits for the device, and ranks for each other, to learn what the loss was."""
        now = self._interval
        said = self._gang.gather((float(now.nll), int(now.bad_step)))
        seconds = time.perf_counter() - now.began - now.elsewhere
        bad = [(step, math.isfinite(nll), rank) for rank, (nll, step) in enumerate(said) if step >= 0]
        if bad:
            step, _, rank = min(bad)  # gradients are everybody's; the loss that spoilt them is one rank's
            raise Diverged(
                f"loss or gradients are not finite at step {step} on rank {rank}; the best checkpoint before is kept",
                code="Diverged",
                remedy="lower training.learningRate, raise training.warmupRatio, or look for broken rows in the data",
            )
        loss = sum(nll for nll, _ in said) / max(1, now.trained_tokens)
        norm = float(self._norm)
        self._interval = Interval.empty(self._gang.device)
        self._reporter.steps(done, Told(loss, self._rate, norm, now.steps, now.row_tokens, seconds))

    def _validation_due(self, done: int) -> bool:
        return self._validate_every is not None and (done % self._validate_every == 0 or done == self._plan.steps)

    def _save_due(self, done: int) -> bool:
        return done % self._checkpoint_every == 0 or done == self._plan.steps

    def _validate_and_save(self, done: int) -> None:
        """Validation at a step that may become the best one. If a stop comes meanwhile, it is made up for on resuming."""
        began = time.perf_counter()
        try:
            measured = split_loss(
                self._gang,
                self._engine.module,
                self._task,
                self._shards.validation,
                on_batch=lambda _: self._watchdog.beat(),
            )
        except Stopped:
            self._save(done, None)
            raise self._stopped(done) from None
        seconds = time.perf_counter() - began
        self._interval.elsewhere += seconds
        loss = measured.loss if math.isfinite(measured.loss) else None
        if loss is not None:
            self._reporter.validated(done, loss, tokens=measured.tokens, seconds=seconds)
        better = loss is not None and (self._best_loss is None or loss < self._best_loss)
        if better:
            self._best_loss = loss
        if better or self._save_due(done):
            self._save(done, loss)

    def _save(self, done: int, eval_loss: float | None) -> None:
        state = {
            "step": done,
            "optimizer": {"name": "adamw", "steps": done},
            "schedule": {"name": self._training.schedule, "step": done},
            "data": {"plan": self._plan.key, "next_step": done, "epoch": done / self._plan.steps_per_epoch},
            "randomness": {"kind": "by-step-and-rank", "seed": self._training.seed},
        }
        manifest = {
            "step": done,
            "eval_loss": eval_loss,
            "world_size": self._gang.world_size,
            "strategy": self._context.config.spec.compute.strategy,
        }
        began = time.perf_counter()
        with self._watchdog.paused():
            checkpoint = saving.save(self._gang, self._engine, self._store, state, manifest)
        seconds = time.perf_counter() - began
        self._interval.elsewhere += seconds
        self._reporter.saved(done, checkpoint, seconds=seconds)

    def _stopped(self, done: int) -> Stopped:
        return Stopped(
            f"stopped on request at step {done} of {self._plan.steps}; a checkpoint was saved", code="Stopped"
        )


def _mix(seed: int, step: int, rank: int) -> int:
    """A seed for this step and rank alone."""
    value = 0
    for part in (seed, step, rank):
        value = (value ^ part) * 0x9E3779B97F4A7C15 % 2**63
        value ^= value >> 29
    return value
