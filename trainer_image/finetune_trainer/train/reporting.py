"""How the training is told: log lines for people, the history's curves, the progress that is served."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from finetune_api.evaluation import Metric

from finetune_trainer.data.shards import Shards
from finetune_trainer.evaluate.validation import Validated
from finetune_trainer.stage import StageContext
from finetune_trainer.train.checkpoint import Checkpoint
from finetune_trainer.train.history import History, eval_name
from finetune_trainer.train.rank_times import Slowest

SLOW = 1.5
"""Times the median rank: from here on the log names a slow rank."""

TRAIN_SHARE = 0.9
"""Share of the stage's percentage that the steps have; measuring base and tuned has the rest."""


@dataclass(frozen=True, slots=True)
class Told:
    """What is known of an interval of steps: `loss` per trained token over all of it, rate and norm of its last step."""

    loss: float
    learning_rate: float
    grad_norm: float
    steps: int
    row_tokens: int
    seconds: float
    slowest: Slowest | None = None


@dataclass(slots=True)
class Pace:
    """How fast the steps were. The first interval counts as start-up: it pays for whatever libraries put off until then."""

    startup_seconds: float | None = None
    row_tokens: int = 0
    step_seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float | None:
        return self.row_tokens / self.step_seconds if self.step_seconds else None


class Reporter:
    """On rank 0 it speaks; on all ranks it notes what their termination messages should say."""

    def __init__(
        self,
        context: StageContext,
        shards: Shards,
        history: History,
        *,
        validate_every: int | None,
        checkpoint_every: int,
    ) -> None:
        self._context = context
        self._history = history
        self._plan = shards.plan()
        self._unit = "rows" if shards.task == "sequence-classification" else "tokens"
        self._validate_every = validate_every
        self._checkpoint_every = checkpoint_every
        self._tests = 2 * shards.test.rows / shards.validation.rows if shards.validation.rows else 0.0
        self._step_seconds: float | None = None
        self._validation_seconds = 0.0
        self._save_seconds = 0.0
        self._named: int | None = None
        self.pace = Pace()

    def steps(self, done: int, told: Told) -> None:
        """`done` steps are done, the last `told.steps` of them since the last word."""
        if self.pace.startup_seconds is None:
            self.pace.startup_seconds = time.monotonic() - self._context.began
        else:
            self.pace.row_tokens += told.row_tokens
            self.pace.step_seconds += told.seconds
        if done > 1:  # the first step also pays for whatever libraries put off until then
            self._step_seconds = told.seconds / told.steps
            self._context.note(step_seconds=self._step_seconds)
        if told.slowest is not None:
            self._report_slowest(done, told.slowest)
        values = {
            "epoch": round(done / self._plan.steps_per_epoch, 4),
            "loss": told.loss,
            "learning_rate": told.learning_rate,
            "grad_norm": told.grad_norm,
            "tokens_per_second": told.row_tokens / told.seconds,
        }
        self._note_metrics(loss=told.loss, tokens_per_second=values["tokens_per_second"])
        self._history.append(step=done, **values, time=time.time())
        left = self._seconds_left(done)
        self._context.progress.update(
            stage="train",
            step=done,
            total_steps=self._plan.steps,
            percent=100 * TRAIN_SHARE * done / self._plan.steps,
            eta_seconds=left,
            step_seconds=self._step_seconds,
            **values,
        )
        line = f"loss {told.loss:.4f}  lr {told.learning_rate:.2e}  grad {told.grad_norm:.3f}  {values['tokens_per_second']:,.0f} tokens/s"
        self._say(done, line + (f"  {duration(left)} left" if left is not None else ""))

    def validated(self, done: int, measured: Validated, *, metric: Metric, seconds: float) -> None:
        """`metric` is what `measured.value` is of; the loss is told whatever it is."""
        self._validation_seconds = seconds
        told = {"eval_loss": measured.loss, eval_name(metric): measured.value}
        values = {name: value for name, value in told.items() if math.isfinite(value)}
        self._note_metrics(**values)
        self._history.append(step=done, **values, time=time.time())
        self._context.progress.update(**{name: values[name] for name in ("eval_loss",) if name in values})
        own = "" if metric == "loss" else f"  {metric} {measured.value:.4f}"
        self._say(done, f"validation loss {measured.loss:.4f}{own} over {measured.tokens:,} {self._unit}")

    def ended_early(self, done: int, why: str) -> None:
        """The rest of the steps is not taken, because validation stopped improving."""
        left = self._plan.steps - done
        self._note_metrics(stopped_early_step=float(done))
        self._history.append(step=done, stopped_early=why, time=time.time())
        self._context.progress.update(percent=100 * TRAIN_SHARE, force=True)
        self._say(done, f"stopped early: {why}; the remaining {left} steps are not taken")

    def saved(self, done: int, checkpoint: Checkpoint, *, seconds: float) -> None:
        self._save_seconds = seconds
        known = {"last_checkpoint": checkpoint.status(), "checkpoint_seconds": checkpoint.seconds}
        self._context.note(step=done, **known)
        self._context.progress.update(**known, force=True)
        self._say(done, f"checkpoint {checkpoint.folder.name} sealed")

    def _report_slowest(self, done: int, slowest: Slowest) -> None:
        self._context.progress.update(slowest_rank=slowest.rank, step_time_skew=slowest.skew)
        named, self._named = self._named, slowest.rank if slowest.skew >= SLOW else None
        if self._named not in (named, None):
            self._say(done, f"rank {slowest.rank} is slow: its forward passes take {slowest.skew:.1f} times the median")

    def _seconds_left(self, done: int) -> float | None:
        """Until the stage is done: steps, validations, checkpoints, and the loss of base and tuned on the test split."""
        if self._step_seconds is None:
            return None
        steps = self._plan.steps - done
        validations = steps // self._validate_every if self._validate_every else 0
        return (
            steps * self._step_seconds
            + (validations + self._tests) * self._validation_seconds
            + steps // self._checkpoint_every * self._save_seconds
        )

    def _note_metrics(self, **values: float) -> None:
        self._context.note(metrics=self._context.known.get("metrics", {}) | values)

    def _say(self, done: int, line: str) -> None:
        if self._context.rank == 0:
            print(f"step {done}/{self._plan.steps}  {line}", flush=True)


def duration(seconds: float) -> str:
    """For people: 42s, 3m12s, 2h05m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
