"""The slowest rank over a window of steps."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
import torch
from finetune_trainer.train.rank_times import ForwardTime, RankTimes, Slowest


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ([(1, [9.0, 1.0])], None),
        ([(1, [9.0, 1.0]), (19, [1.0, 1.0])], None),
        ([(1, [9.0, 1.0]), (10, [1.0, 2.0]), (10, [1.0, 2.0])], Slowest(1, 2.0)),
        ([(1, [1.0, 1.0, 1.0]), (20, [3.0, 1.0, 1.0])], Slowest(0, 3.0)),
        ([(1, [1.0, 1.0, 1.0]), (20, [3.0, 1.0, 1.0]), (20, [1.0, 1.0, 1.5])], Slowest(2, 1.5)),
        ([(1, [0.0, 0.0]), (20, [0.0, 1.0])], None),
        ([(1, [1.0]), (20, [1.0])], None),
    ],
)
def test_slowest(intervals: Sequence[tuple[int, list[float]]], expected: Slowest | None) -> None:
    times = RankTimes()
    found = [times.add(seconds, steps) for steps, seconds in intervals]
    assert found[-1] == expected


def test_only_what_runs_within_counts() -> None:
    own = ForwardTime(torch.device("cpu"))
    with own.running():
        time.sleep(0.02)
    time.sleep(0.1)
    with own.running():
        time.sleep(0.02)
    assert 0.04 <= own.take() < 0.1
    assert own.take() == 0.0
