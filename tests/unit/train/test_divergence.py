"""Losses that have gone astray, and many that have not."""

from __future__ import annotations

import math
import random

import pytest
from finetune_trainer.train.divergence import Divergence
from hypothesis import given
from hypothesis import strategies as st

STEPS, EVERY = 1000, 10


def found(losses: list[float], steps: int = STEPS, every: int = EVERY) -> int | None:
    """The step at which it is found, of losses told `every` so many steps."""
    watch = Divergence(steps)
    for number, loss in enumerate(losses, 1):
        if watch.take(number * every, loss):
            return number * every
    return None


def falling(count: int, noise: float = 0.1, seed: int = 0) -> list[float]:
    draw = random.Random(seed)
    return [1 + 2 * math.exp(-i / 20) + draw.gauss(0, noise) for i in range(count)]


def test_a_loss_that_rises_and_stays_is_found_within_patience() -> None:
    step = found([*falling(40), *[9.0] * 60])
    assert step is not None
    assert 400 + 50 <= step <= 400 + 50 + 5 * EVERY


def test_what_is_said() -> None:
    watch = Divergence(STEPS)
    astray = [one for i, loss in enumerate([*falling(40, 0.0), *[9.0] * 60], 1) if (one := watch.take(i * EVERY, loss))]
    assert astray[0].now == 9.0
    assert astray[0].best == pytest.approx(1.3, abs=0.1)
    assert astray[0].best_step == 400
    assert 400 < astray[0].since <= 430


@pytest.mark.parametrize(
    "losses",
    [
        pytest.param(falling(100), id="falls"),
        pytest.param([*falling(40), 50.0, 80.0, *falling(58, seed=1)], id="two terrible intervals"),
        pytest.param([*falling(40), *[9.0, 7.0, 5.0, 3.0, 2.0], *[1.5] * 55], id="a spike that passes"),
        pytest.param([*[0.01] * 50, *[0.9] * 50], id="less than a nat above"),
        pytest.param([10.5] * 100, id="learns nothing"),
        pytest.param([random.Random(i).uniform(0, 8) for i in range(100)], id="noise of batches of one row"),
    ],
)
def test_what_is_left_alone(losses: list[float]) -> None:
    assert found(losses) is None


def test_tiny_runs_are_left_alone() -> None:
    losses = [*[1.0] * 50, *[90.0] * 100]
    assert found(losses, steps=150, every=1) is None
    assert found(losses, steps=200, every=1) is not None


def test_a_wild_end_cannot_hide_behind_its_own_noise() -> None:
    draw = random.Random(1)
    assert found([*falling(40), *[draw.uniform(5, 60) for _ in range(60)]]) is not None


def test_a_resumed_run_knows_the_best_of_before() -> None:
    before, after = Divergence(STEPS), Divergence(STEPS)
    for number, loss in enumerate(falling(40), 1):
        before.take(number * EVERY, loss)
    after.resume(before.state())
    assert any(after.take(400 + number * EVERY, 9.0) for number in range(1, 20))


@given(losses=st.lists(st.floats(0, 3), min_size=1, max_size=80), scale=st.floats(0, 0.3))
def test_no_loss_within_a_nat_of_its_best_is_astray(losses: list[float], scale: float) -> None:
    assert found([loss * scale for loss in losses]) is None
