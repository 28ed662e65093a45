"""The learning rate."""

from __future__ import annotations

import itertools
import math

import pytest
from finetune_trainer.train.schedule import learning_rate
from hypothesis import given
from hypothesis import strategies as st


def rates(**how: object) -> list[float]:
    how = {"steps": 10, "peak": 1.0, "warmup_ratio": 0.0, "schedule": "cosine"} | how
    return [learning_rate(step, **how) for step in range(how["steps"])]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"schedule": "constant"}, [1.0] * 10),
        ({"schedule": "linear"}, [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
        ({"schedule": "cosine"}, [0.5 * (1 + math.cos(math.pi * step / 10)) for step in range(10)]),
        ({"schedule": "constant", "warmup_ratio": 0.3}, [0.25, 0.5, 0.75] + [1.0] * 7),
        ({"schedule": "linear", "warmup_ratio": 0.15}, [1 / 3, 2 / 3] + [1 - step / 8 for step in range(8)]),
        ({"steps": 1, "warmup_ratio": 1.0}, [0.5]),
        ({"schedule": "wsd", "decay_ratio": 0.3}, [1.0] * 7 + [0.75, 0.5, 0.25]),
        ({"schedule": "wsd", "decay_ratio": 0.2, "warmup_ratio": 0.1}, [0.5] + [1.0] * 7 + [2 / 3, 1 / 3]),
        (
            {"schedule": "wsd", "decay_ratio": 1.0, "warmup_ratio": 0.5},
            [step / 6 for step in range(1, 6)] + [step / 6 for step in range(5, 0, -1)],
        ),
    ],
)
def test_known_curves(how: dict[str, object], expected: list[float]) -> None:
    assert rates(**how) == pytest.approx(expected)


@given(
    steps=st.integers(1, 200),
    schedule=st.sampled_from(["cosine", "linear", "constant", "wsd"]),
    warmup_ratio=st.floats(0, 1),
    decay_ratio=st.floats(0, 1, exclude_min=True),
)
def test_no_step_is_wasted_and_none_exceeds_the_peak(
    steps: int, schedule: str, warmup_ratio: float, decay_ratio: float
) -> None:
    curve = rates(steps=steps, schedule=schedule, warmup_ratio=warmup_ratio, decay_ratio=decay_ratio)
    assert all(0 < rate <= 1 for rate in curve)
    warmup = math.ceil(warmup_ratio * steps)
    assert curve[:warmup] == sorted(curve[:warmup])
    assert curve[warmup:] == sorted(curve[warmup:], reverse=True)


@given(steps=st.integers(2, 200), warmup_ratio=st.floats(0, 0.5), decay_ratio=st.floats(0.01, 0.4))
def test_wsd_is_stable_between_warm_up_and_decay_and_ends_low(
    steps: int, warmup_ratio: float, decay_ratio: float
) -> None:
    curve = rates(steps=steps, schedule="wsd", warmup_ratio=warmup_ratio, decay_ratio=decay_ratio)
    warmup, decay = math.ceil(warmup_ratio * steps), min(math.ceil(decay_ratio * steps), steps)
    decay = min(decay, steps - warmup)
    assert curve[warmup : steps - decay] == [1.0] * (steps - decay - warmup)
    if decay:
        falls = [1.0, *curve[steps - decay :], 0.0]
        assert [b - a for a, b in itertools.pairwise(falls)] == pytest.approx([-1 / (decay + 1)] * (decay + 1))
