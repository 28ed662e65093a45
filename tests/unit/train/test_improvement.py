"""Which checkpoint is the best, and when patience is at an end."""

from __future__ import annotations

import math
from typing import Any

import pytest
from finetune_trainer.train.improvement import Best, Improvement
from hypothesis import given
from hypothesis import strategies as st


def follow(values: list[float], **how: Any) -> Improvement:
    one = Improvement(**{"metric": "loss", "patience": 2} | how)
    for step, value in enumerate(values, 1):
        one.take(step, value)
    return one


@pytest.mark.parametrize(
    ("how", "values", "best", "exhausted"),
    [
        ({}, [3.0, 2.0, 1.0], 3, False),
        ({}, [3.0, 2.0, 2.5], 2, False),
        ({}, [3.0, 2.0, 2.5, 2.1], 2, True),
        ({}, [3.0, 2.0, 2.0, 2.0], 2, True),
        ({"patience": None}, [3.0, 4.0, 5.0, 6.0], 1, False),
        ({"metric": "accuracy"}, [0.1, 0.5, 0.4], 2, False),
        ({"metric": "accuracy"}, [0.5, 0.1, 0.2], 1, True),
        ({"metric": "f1", "min_delta": 0.1}, [0.5, 0.55, 0.59], 3, True),
        ({"metric": "f1", "min_delta": 0.1}, [0.5, 0.55, 0.65, 0.66], 4, False),
        ({"min_delta": 0.5}, [3.0, 2.6, 2.4, 2.2], 4, False),
        ({}, [math.nan, math.nan], None, True),
        ({}, [math.nan, 2.0, math.inf], 2, False),
    ],
)
def test_curves(how: dict[str, Any], values: list[float], best: int | None, exhausted: bool) -> None:
    one = follow(values, **how)
    assert (one.best.step if one.best else None, one.exhausted) == (best, exhausted)


@given(
    values=st.lists(st.floats(0, 10) | st.just(math.nan), min_size=1, max_size=30),
    cut=st.integers(0, 30),
    patience=st.integers(1, 5),
    min_delta=st.floats(0, 2),
    metric=st.sampled_from(["loss", "accuracy"]),
)
def test_a_resumed_run_stops_where_an_undisturbed_one_does(
    values: list[float], cut: int, patience: int, min_delta: float, metric: str
) -> None:
    """The checkpoint's state, and the best checkpoint itself, are all that goes from one attempt to the next."""
    how: dict[str, Any] = {"metric": metric, "patience": patience, "min_delta": min_delta}
    whole = follow(values, **how)
    before = follow(values[:cut], **how)
    after = Improvement(**how)
    after.best = before.best
    after.resume(before.state())
    for step, value in enumerate(values[cut:], cut + 1):
        after.take(step, value)
    assert (after.best, after.exhausted, after.without) == (whole.best, whole.exhausted, whole.without)


def test_the_best_is_the_earliest_of_equals() -> None:
    assert follow([2.0, 1.0, 1.0]).best == Best(2, 1.0)


def test_the_state_of_another_metric_is_left_aside() -> None:
    one = Improvement("accuracy", patience=1)
    one.resume(follow([1.0, 2.0]).state())
    assert not one.exhausted


def test_the_reason_names_the_value_to_beat() -> None:
    assert follow([2.0, 1.0, 1.5, 1.25]).said == "loss has not improved since step 2 (1.0000) in 2 validations"
