"""Finds a hang: when no work unit ends for much longer than usual, stacks are dumped and this rank leaves with code 7."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

ENV_SECONDS = "FINETUNE_HANG_SECONDS"  # for tests, and for storage or networks that are slower than anybody thought
_LEAST_SECONDS = 120.0
_FIRST_SECONDS = 900.0
"""Until a step is done: libraries compile, storage is cold, and nothing is known of how long a step takes."""
_FACTOR = 10


class Watchdog:
    """Watches from its making to the end of its `with` block. `beat` after every piece of work (a step, a micro-batch, a generated token). Limit: the longer of 120 s and ten medians of a step."""

    def __init__(self, stacks: Path, hang: Callable[[float], None]) -> None:
        """`stacks` gets every thread's stack; then `hang(seconds)` is called from the watchdog's thread."""
        self._stacks = stacks
        self._hang = hang
        own = os.environ.get(ENV_SECONDS)
        self._least = float(own or _LEAST_SECONDS)
        self._first = float(own or _FIRST_SECONDS)
        self._durations: deque[float] = deque(maxlen=64)
        self._last = time.monotonic()
        self._paused = 0
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()

    def beat(self, *, seconds: float | None = None) -> None:
        """Something went on; `seconds` is how long a whole step took."""
        self._last = time.monotonic()
        if seconds is not None:
            self._durations.append(seconds)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Around work whose duration is nobody's fault: storage. A peer that dies meanwhile is still noticed by the network; one that hangs, by a rank that is not paused."""
        self._paused += 1
        try:
            yield
        finally:
            self._last = time.monotonic()
            self._paused -= 1

    @property
    def limit_seconds(self) -> float:
        return max(self._least, _FACTOR * statistics.median(list(self._durations))) if self._durations else self._first

    def _watch(self) -> None:
        while not self._closed.wait(min(5.0, self._least / 4)):
            idle = time.monotonic() - self._last
            if not self._paused and idle > self.limit_seconds:
                with contextlib.suppress(OSError), self._stacks.open("w") as file:
                    faulthandler.dump_traceback(file, all_threads=True)
                self._hang(idle)
                return
