"""The slowest rank over a window of steps."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from finetune_trainer.train import rank_times
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


def test_only_what_runs_within_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((1.0, 1.5, 9.0, 9.25))
    monkeypatch.setattr(rank_times.time, "perf_counter", lambda: next(clock))
    own = ForwardTime(torch.device("cpu"))
    for _ in range(2):
        with own.running():
            pass
    assert own.take() == 0.75
    assert own.take() == 0.0
