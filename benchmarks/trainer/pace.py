"""Windows of steps, one contender at a time: a worker trains only while it is told to, and says what a window took."""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import asdict, dataclass
from typing import TextIO


@dataclass(frozen=True)
class Window:
    """`tokens` are those of rows, padding not counted; `cpu_seconds` are of all threads of the worker."""

    steps: int
    tokens: int
    seconds: float
    cpu_seconds: float
    loss: float | None
    resident_mib: float
    peak_mib: float


class Finished(Exception):
    """The driver wants no more windows."""


class Pace:
    """The worker's side. `orders` holds a number of steps a line; end of file means that it is over."""

    def __init__(self, orders: TextIO, answers: TextIO) -> None:
        self._orders = orders
        self._answers = answers
        self._left = 0
        self._tokens = 0

    def begin(self) -> None:
        """Call when everything is built, before the first step. Waits for the first order."""
        self._wait()

    def step(self, tokens: int, loss: float | None = None) -> None:
        """Call after every optimizer step. At a window's end it answers and waits for the next order; raises Finished."""
        self._tokens += tokens
        self._left -= 1
        if self._left == 0:
            window = Window(
                self._size,
                self._tokens,
                time.perf_counter() - self._began,
                _cpu_seconds() - self._cpu,
                loss,
                _memory("VmRSS"),
                _memory("VmHWM"),
            )
            print(json.dumps(asdict(window)), file=self._answers, flush=True)
            self._wait()

    def _wait(self) -> None:
        order = self._orders.readline()
        if not order:
            raise Finished
        self._size = self._left = int(order)
        self._tokens = 0
        self._began = time.perf_counter()
        self._cpu = _cpu_seconds()


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _memory(field: str) -> float:
    if sys.platform != "linux":
        return float("nan")
    with open("/proc/self/status") as file:  # noqa: PTH123 (not a file)
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(field))
