"""The training loop: planned steps, validation, checkpoints, and stopping at a step's end."""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass
from typing import Any

import torch

from finetune_trainer.data.shards import Shards
from finetune_trainer.errors import Diverged, Stopped
from finetune_trainer.evaluate.validation import Validated, validate
from finetune_trainer.stage import StageContext
from finetune_trainer.tasks.base import Task
from finetune_trainer.train import nonfinite, saving, shortage
from finetune_trainer.train.checkpoint import Checkpoint, CheckpointStore
from finetune_trainer.train.divergence import Divergence
from finetune_trainer.train.engines.engine import Engine
from finetune_trainer.train.gang import Gang
from finetune_trainer.train.history import History
from finetune_trainer.train.improvement import Best, Improvement
from finetune_trainer.train.rank_times import RankTimes
from finetune_trainer.train.reporting import Reporter, Told
from finetune_trainer.train.schedule import learning_rate
from finetune_trainer.train.step import Stepper
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
        tokenizer: Any,
    ) -> None:
        self._context = context
        self._training = context.config.spec.training
        self._gang = gang
        self._engine = engine
        self._shards = shards
        self._task = task
        self._plan = shards.plan()
        self._saver = saving.Saver(gang, engine, store, watchdog.paused)
        self._stall = 0.0
        self._watchdog = watchdog
        self._tokenizer = tokenizer
        self._stepper = Stepper(context, gang, engine, shards, task, watchdog)
        self._improvement = improvement(context.config.spec.training, best)
        self._divergence = Divergence(self._plan.steps)
        self._rank_times = RankTimes()
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
            decay_ratio=self._training.decay_ratio,
        )
        self._rate = 0.0
        self._norm: torch.Tensor | float = 0.0
        self.first_rows = self._stepper.first_rows
        self.pace = self._reporter.pace

    def run(self, resumed: Checkpoint | None) -> int:
        """Train to the end, or until validation stops improving. Returns the number of the last step.

        Raises Stopped after a checkpoint was sealed, Diverged when the loss is no number any more or has gone astray.
        """
        try:
            last = self._run(resumed)
            self._saved(last, self._saver.settle(wait=True))
            return last
        finally:
            self._saver.finish()

    def _run(self, resumed: Checkpoint | None) -> int:
        start = resumed.step if resumed else 0
        if resumed:
            self._resume(resumed)
        self._engine.module.train()
        self._interval = Interval.empty(self._gang.device)
        for step in range(start, self._plan.steps):
            if self._improvement.exhausted:
                self._reporter.ended_early(step, self._improvement.said)
                return step
            self._step(step)
            done = step + 1
            stop = self._gang.stop_agreed()
            validates, saves = self._validation_due(done), self._save_due(done)
            if stop or validates or saves or done == 1 or done % self._log_every == 0:
                self._tell(done)  # before anything is saved: what is not finite must not be
            self._saved(done, self._saver.settle(wait=False))
            if stop:
                self._save(done, None, last=True)
                raise self._stopped(done)
            if validates:
                self._validate_and_save(done)
            elif saves:
                self._save(done, None)
        return self._plan.steps

    def _resume(self, resumed: Checkpoint) -> None:
        state = resumed.state()
        self._improvement.resume(state.get("improvement", {}))
        self._divergence.resume(state.get("divergence", {}))
        if self._validation_due(resumed.step) and resumed.eval_loss is None:
            self._validate_and_save(resumed.step)  # a stop came before it

    def _step(self, step: int) -> None:
        began = time.perf_counter()
        self._gang.propose_stop()
        self._rate = self._schedule(step)
        taken = self._stepper.take(step, self._rate)
        self._norm = taken.norm
        now = self._interval
        now.nll += taken.nll
        good = torch.isfinite(taken.nll + taken.norm)
        now.bad_step = torch.where((now.bad_step < 0) & ~good, step + 1, now.bad_step)
        now.trained_tokens += taken.trained_tokens
        now.row_tokens += taken.row_tokens
        now.steps += 1
        self._context.note(step=step + 1)
        self._watchdog.beat(seconds=time.perf_counter() - began)

    def _tell(self, done: int) -> None:
        """The one place where the host waits for the device, and ranks for each other, to learn what the loss was."""
        now = self._interval
        # Read in this order: the loss waits for the device, and then its clocks are known too.
        said = self._gang.gather((float(now.nll), int(now.bad_step), self._stepper.forward_time.take()))
        seconds = time.perf_counter() - now.began - now.elsewhere
        bad = [(step, math.isfinite(nll), rank) for rank, (nll, step, _) in enumerate(said) if step >= 0]
        if bad:
            step, _, rank = min(bad)  # gradients are everybody's; the loss that spoilt them is one rank's
            raise self._not_finite(step, rank)
        loss = sum(nll for nll, *_ in said) / max(1, now.trained_tokens)
        slowest = self._rank_times.add([forward for *_, forward in said], now.steps)
        norm = float(self._norm)
        self._interval = Interval.empty(self._gang.device)
        self._reporter.steps(done, Told(loss, self._rate, norm, now.steps, now.row_tokens, seconds, slowest))
        astray = self._divergence.take(done, loss)
        if astray is not None:
            raise Diverged(
                f"training diverged at about step {astray.since}: the loss is {astray.now:.4g} at step {done}, and was {astray.best:.4g} at step {astray.best_step}; the best checkpoint before is kept",
                code="Diverged",
                remedy="lower training.learningRate or training.maxGradNorm, or raise training.warmupRatio",
            )

    def _not_finite(self, step: int, rank: int) -> Diverged:
        words = "when the step was repeated, every layer's output and gradient is finite"
        try:
            rank, words = self._stepper.search(step - 1) or (rank, words)
        except Exception as error:  # the step's own failure is the cause, whatever the second look meets
            words = f"the layer could not be found ({type(error).__name__}: {str(error)[:200]})"
        remedy = "lower training.learningRate, raise training.warmupRatio, or check the data for broken rows"
        if nonfinite.IN_THE_WEIGHTS in words:  # of trained ones the search says that an update was made
            remedy = "the model's files hold such numbers: copy its folder again, or name another revision of it"
        return Diverged(
            f"loss or gradients are not finite at step {step} on rank {rank}: {words}; the best checkpoint before is kept",
            code="Diverged",
            remedy=remedy,
        )

    def _validation_due(self, done: int) -> bool:
        return self._validate_every is not None and (done % self._validate_every == 0 or done == self._plan.steps)

    def _save_due(self, done: int) -> bool:
        return done % self._checkpoint_every == 0 or done == self._plan.steps

    def _validate_and_save(self, done: int) -> None:
        """Validation at a step that may become the best one. If a stop comes meanwhile, it is made up for on resuming."""
        began = time.perf_counter()
        try:
            measured = self._validate(done)
        except Stopped:
            self._save(done, None, last=True)
            raise self._stopped(done) from None
        seconds = time.perf_counter() - began
        self._interval.elsewhere += seconds
        better = self._improvement.take(done, measured.value)
        if math.isfinite(measured.loss):
            self._reporter.validated(done, measured, metric=self._improvement.metric, seconds=seconds)
        if better or self._improvement.exhausted or self._save_due(done):
            self._save(done, measured)

    def _validate(self, done: int) -> Validated:
        with shortage.explaining(self._context, f"the validation after step {done}"), self._engine.averaged():
            return validate(
                self._gang,
                self._engine.module,
                self._task,
                self._shards,
                self._improvement.metric,
                on_batch=lambda _: self._watchdog.beat(),
                on_token=self._watchdog.beat,
                module_communicates=self._engine.module_communicates,
                tokenizer=self._tokenizer,
            )

    def _save(self, done: int, measured: Validated | None, *, last: bool = False) -> None:
        state = {
            "step": done,
            "optimizer": {"name": self._training.optimizer, "steps": done},
            "schedule": {"name": self._training.schedule, "step": done},
            "data": {"plan": self._plan.key, "next_step": done, "epoch": done / self._plan.steps_per_epoch},
            "randomness": {"kind": "by-step-and-rank", "seed": self._training.seed},
            "improvement": self._improvement.state(),
            "divergence": self._divergence.state(),
        }
        manifest: dict[str, Any] = {
            "step": done,
            "eval_loss": _number(measured.loss) if measured else None,
            "metric": self._improvement.metric,
            "value": _number(measured.value) if measured else None,
            "world_size": self._gang.world_size,
            "strategy": self._context.config.spec.compute.strategy,
        }
        began = time.perf_counter()
        sealed = self._saver.save(state, manifest, wait=last)
        self._stall = time.perf_counter() - began
        self._interval.elsewhere += self._stall
        self._saved(done, sealed)

    def _saved(self, done: int, sealed: list[Checkpoint]) -> None:
        """A large checkpoint is sealed some steps after it was taken."""
        for checkpoint in sealed:
            self._reporter.saved(done, checkpoint, seconds=self._stall)

    def _stopped(self, done: int) -> Stopped:
        return Stopped(
            f"stopped on request at step {done} of {self._plan.steps}; a checkpoint was saved", code="Stopped"
        )


def improvement(training: Any, best: Checkpoint | None) -> Improvement:
    """What the spec asks to follow, with the best checkpoint that lies there as the one to beat."""
    wanted = training.early_stopping
    follows = Improvement(
        (wanted.metric if wanted else None) or "loss",
        patience=wanted.patience if wanted else None,
        min_delta=wanted.min_delta if wanted else 0.0,
    )
    if best is not None and best.value is not None:
        follows.best = Best(best.step, best.value)
    return follows


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
