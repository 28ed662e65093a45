"""Which rank is slow. Each rank times its own forward passes; the times travel with the loss, so nothing waits for them.

Whole steps take equally long on all ranks, since they wait for each other's gradients. A forward pass waits for nobody under
DDP and ZeRO-1/2. Under ZeRO-3 and FSDP2 it waits for the weights that others hold, so a slow rank shows less there.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

WINDOW_STEPS = 20


class ForwardTime:
    """Seconds that this rank's device spends within `running`."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        if self._cuda:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._events.append((start, end))
        else:
            began = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - began

    def take(self) -> float:
        """Seconds since the last call. Raises RuntimeError on CUDA if the host has not waited for the device since."""
        seconds = self._seconds + sum(start.elapsed_time(end) for start, end in self._events) / 1000
        self._seconds = 0.0
        self._events.clear()
        return seconds


@dataclass(frozen=True, slots=True)
class Slowest:
    """`skew`: its time over the median rank's."""

    rank: int
    skew: float


class RankTimes:
    """The ranks' times over the last WINDOW_STEPS steps or more. The first interval does not count: it compiles and warms up."""

    def __init__(self) -> None:
        self._intervals: deque[tuple[int, Sequence[float]]] = deque()
        self._warm = False

    def add(self, seconds: Sequence[float], steps: int) -> Slowest | None:
        """`seconds` of each rank over an interval of `steps`. None for a single rank, and until the window is full."""
        if not self._warm:
            self._warm = True
            return None
        self._intervals.append((steps, seconds))
        while sum(steps for steps, _ in self._intervals) - self._intervals[0][0] >= WINDOW_STEPS:
            self._intervals.popleft()
        if len(seconds) == 1 or sum(steps for steps, _ in self._intervals) < WINDOW_STEPS:
            return None
        totals = [sum(times) for times in zip(*(seconds for _, seconds in self._intervals), strict=True)]
        rank = max(range(len(totals)), key=totals.__getitem__)
        median = statistics.median_low(totals)
        return Slowest(rank, totals[rank] / median) if median else None
