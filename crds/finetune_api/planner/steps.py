"""How many steps a training takes, and how often it saves and validates."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepsPlan:
    """`epochs` is exact: steps * global_batch_size rows, the last step of an epoch being short."""

    steps: int
    epochs: float
    checkpoint_every_steps: int
    validate_every_steps: int


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
