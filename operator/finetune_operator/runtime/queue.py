"""The work queue: each key at most once in it, one worker a key, errors wait longer each time.

As client-go's: a key that is added while a worker has it is queued again when that worker is done, so no event is lost
and no job is worked on twice at once.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque

from finetune_operator.telemetry import metrics

Key = tuple[str, str]
"""(namespace, name) of a FineTuneJob."""

_FIRST_BACKOFF_S = 0.05
_LONGEST_BACKOFF_S = 300.0
_FIRST_RETRY_S, _LONGEST_RETRY_S = 5.0, 300.0
_LABELS = (metrics.CONTROLLER, metrics.CONTROLLER)


class WorkQueue:
    """For one event loop; not for threads."""

    def __init__(self) -> None:
        self._waiting: deque[Key] = deque()
        self._queued: dict[Key, float] = {}  # since when
        self._in_work: dict[Key, float] = {}
        self._again: set[Key] = set()
        self._later: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}
        self._retries: dict[Key, tuple[str, int]] = {}
        self._available = asyncio.Event()
        self._closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def in_work(self) -> int:
        return len(self._in_work)

    def add(self, key: Key) -> None:
        """Look at this job soon."""
        if self._closed or key in self._queued:
            return
        if key in self._in_work:
            self._again.add(key)
            return
        metrics.queue_adds.labels(*_LABELS).inc()
        self._queued[key] = asyncio.get_running_loop().time()
        self._waiting.append(key)
        self._available.set()

    def add_after(self, key: Key, seconds: float) -> None:
        """Look at this job in so many seconds, or earlier if something happens."""
        if seconds <= 0:
            self.add(key)
            return
        loop = asyncio.get_running_loop()
        known = self._later.get(key)
        if known is not None:
            if known.when() <= loop.time() + seconds:
                return
            known.cancel()
        self._later[key] = loop.call_later(seconds, self._due, key)

    def add_failed(self, key: Key, at_least: float = 0.0) -> float:
        """Look again after an error; each error in a row doubles the wait, with full jitter. Returns the wait in seconds."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        longest = min(_LONGEST_BACKOFF_S, _FIRST_BACKOFF_S * 2 ** min(failures, 30))
        wait = max(at_least, random.uniform(longest / 4, longest))
        metrics.queue_retries.labels(*_LABELS).inc()
        self.add_after(key, wait)
        return wait

    def retry(self, key: Key, reason: str) -> float:
        """Reconcile again after a backoff that doubles while `reason` stays the same. Returns the wait in seconds."""
        before, count = self._retries.get(key, ("", 0))
        count = count + 1 if before == reason else 0
        self._retries[key] = (reason, count)
        wait = min(_LONGEST_RETRY_S, _FIRST_RETRY_S * 2.0 ** min(count, 30)) * random.uniform(0.75, 1.25)
        self.add_after(key, wait)
        return wait

    def settled(self, key: Key) -> None:
        """Nothing waits for a retry."""
        self._retries.pop(key, None)

    def forget(self, key: Key) -> None:
        """The job was dealt with: its errors count no more."""
        self._failures.pop(key, None)

    async def get(self) -> Key | None:
        """The next key, which is then in work; None when the queue was closed."""
        while not self._waiting:
            if self._closed:
                return None
            self._available.clear()
            await self._available.wait()
        key = self._waiting.popleft()
        now = asyncio.get_running_loop().time()
        metrics.queue_wait_seconds.labels(*_LABELS).observe(now - self._queued.pop(key))
        self._in_work[key] = now
        timer = self._later.pop(key, None)  # the look that it would ask for is this one
        if timer is not None:
            timer.cancel()
        return key

    def done(self, key: Key) -> None:
        """The worker that took the key has finished."""
        began = self._in_work.pop(key)
        metrics.queue_work_seconds.labels(*_LABELS).observe(asyncio.get_running_loop().time() - began)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def close(self) -> None:
        """No new work; workers that wait get None."""
        self._closed = True
        self._waiting.clear()
        self._queued.clear()
        for timer in self._later.values():
            timer.cancel()
        self._later.clear()
        self._available.set()

    def measure(self) -> None:
        """Bring the gauges up to date."""
        now = asyncio.get_running_loop().time()
        running = [now - began for began in self._in_work.values()]
        metrics.queue_depth.labels(*_LABELS).set(len(self._waiting))
        metrics.queue_unfinished_seconds.labels(*_LABELS).set(sum(running))
        metrics.queue_longest_seconds.labels(*_LABELS).set(max(running, default=0.0))
        metrics.active_workers.labels(metrics.CONTROLLER).set(len(running))

    def _due(self, key: Key) -> None:
        self._later.pop(key, None)
        self.add(key)
