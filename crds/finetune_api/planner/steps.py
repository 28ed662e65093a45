"""How many steps a training takes, and how often it saves and validates."""

from __future__ import annotations

import math
from dataclasses import dataclass

VALIDATION_SHARE = 0.05
"""Of a training's time that its validations may take together."""
FEWEST_VALIDATED = 1000
"""Rows: a loss over fewer is too uncertain to choose a checkpoint by, and they cost little."""


@dataclass(frozen=True, slots=True)
class StepsPlan:
    """`epochs` is exact: steps * global_batch_size rows, the last step of an epoch being short."""

    steps: int
    epochs: float
    checkpoint_every_steps: int
    validate_every_steps: int


def validated_rows(rows: int, *, trained_rows: int, validations: int) -> int:
    """Of `rows` validation rows those that each validation measures. A forward takes a third of a training's pass over a row."""
    affordable = math.floor(3 * VALIDATION_SHARE * trained_rows / max(1, validations))
    return min(rows, max(FEWEST_VALIDATED, affordable))


def plan_steps(
    *,
    train_rows: int,
    global_batch_size: int,
    epochs: int | None,
    max_steps: int | None,
    checkpoint_every_steps: int | None,
) -> StepsPlan:
    """Steps of a training over `train_rows` rows. One of `epochs` and `max_steps` is set. An epoch ends with a short step rather than dropping rows.

    Raises ValueError when there is no row to train on.
    """
    if train_rows < 1:
        raise ValueError("there is no row to train on")
    per_epoch = math.ceil(train_rows / global_batch_size)
    steps = max_steps if max_steps is not None else (epochs or 1) * per_epoch
    tenth = max(1, math.ceil(steps / 10))
    return StepsPlan(
        steps=steps,
        epochs=round(steps / per_epoch, 4),
        checkpoint_every_steps=checkpoint_every_steps or min(tenth, 500),
        validate_every_steps=tenth,
    )
