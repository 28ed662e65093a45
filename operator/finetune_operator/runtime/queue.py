"""The work queue: each key at most once in it, one worker a key, errors and retries wait longer each time.

As client-go's: a key that is added while a worker has it is queued again when that worker is done, so no event is lost and no
job is worked on twice at once. Namespaces take turns, and none has more than its share of the workers, so that neither a burst
nor a hanging webhook of one delays the others. Within a namespace, jobs without children go first.
"""

from __future__ import annotations

import asyncio
import enum
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field

from finetune_api.reasons import Reason

from finetune_operator.runtime.backoff import JITTER, backoff
from finetune_operator.telemetry import metrics

Key = tuple[str, str]
"""(namespace, name) of a FineTuneJob."""

_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 0.1, 300.0
_FIRST_RETRY_S, _LONGEST_RETRY_S = 5.0, 300.0
_WOKEN_AT_ONCE = 2
BLOCKED = "blocked:"
"""Before a reason that something which happens in the namespace may end: a freed quota, a changed policy."""
_SPREAD, _SPREAD_WIDE_FROM = 0.5, 5
"""From so many tries on retries are spread wide: a thousand jobs that were refused together soon ask at different times."""
_LONGEST_UNWATCHED_S = {f"{BLOCKED}{Reason.NAME_TAKEN}": 40.0}
"""Objects without our labels are not watched, so nothing reports that one is gone: a minute at most, with the jitter."""
_LABELS = (metrics.CONTROLLER, metrics.CONTROLLER)


class Priority(enum.IntEnum):
    """Which of a namespace's keys goes first."""

    NEW = 0
    """A job that has no children yet."""
    NORMAL = 1
    LATER = 2
    """Finished, and seen in a list of everything: nothing has happened to it."""


@dataclass(slots=True)
class _Queued:
    since: float
    priority: Priority


@dataclass(slots=True)
class _Lane:
    """The keys of one namespace. A key whose priority was raised is in two of the queues; the later one is skipped."""

    waiting: tuple[deque[Key], ...] = field(default_factory=lambda: tuple(deque() for _ in Priority))


@dataclass(slots=True)
class _Retry:
    """Why a key waits; `due` is when its own timer reconciles it."""

    reason: str
    tries: int
    due: float


class WorkQueue:
    """For one event loop; not for threads. `share`: how many keys of one namespace may be in work at once."""

    def __init__(self, share: int = 2**31) -> None:
        self._share = share
        self._queued: dict[Key, _Queued] = {}
        self._new = 0  # of them, jobs without children
        self._lanes: OrderedDict[str, _Lane] = OrderedDict()  # namespaces that have a turn, in order
        self._full: dict[str, _Lane] = {}  # namespaces that have their share in work
        self._in_work: dict[Key, float] = {}
        self._in_work_of: Counter[str] = Counter()
        self._again: dict[Key, Priority] = {}
        self._later: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}
        self._retries: dict[Key, _Retry] = {}
        self._blocked: dict[str, OrderedDict[Key, None]] = {}  # by namespace, the longest waiting first
        self._available, self._finished = asyncio.Event(), asyncio.Event()
        self._closed = False

    def __len__(self) -> int:
        return len(self._queued)

    @property
    def in_work(self) -> int:
        return len(self._in_work)

    def add(self, key: Key, priority: Priority = Priority.NORMAL) -> None:
        """Reconcile this job soon."""
        if self._closed:
            return
        if key in self._in_work:
            self._again[key] = min(priority, self._again.get(key, priority))
            return
        queued = self._queued.get(key)
        if queued is not None:
            if priority >= queued.priority:
                return
            queued.priority = priority
        else:
            metrics.queue_adds.labels(*_LABELS).inc()
            self._queued[key] = _Queued(asyncio.get_running_loop().time(), priority)
        self._new += priority is Priority.NEW
        self._lane(key[0]).waiting[priority].append(key)
        self._available.set()

    def new_jobs_wait(self) -> bool:
        """Whether any job waits for its first children."""
        return self._new > 0

    def add_after(self, key: Key, seconds: float) -> None:
        """Reconcile this job in so many seconds, or earlier if something happens."""
        if seconds <= 0:
            self.add(key)
            return
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        known = self._later.get(key)
        if known is not None:
            if known.when() <= loop.time() + seconds:
                return
            known.cancel()
        self._later[key] = loop.call_later(seconds, self._due, key)

    def add_failed(self, key: Key, at_least: float = 0.0) -> float:
        """Reconcile again after an error; each error in a row doubles the wait. Returns the wait in seconds."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        wait = max(at_least, backoff(failures, _FIRST_BACKOFF_S, _LONGEST_BACKOFF_S))
        metrics.queue_retries.labels(*_LABELS).inc()
        self.add_after(key, wait)
        return wait

    def forget(self, key: Key) -> None:
        """The job was dealt with: its errors count no more."""
        self._failures.pop(key, None)

    # Jobs that cannot proceed.

    def retry(self, key: Key, reason: str) -> float:
        """Reconcile again later, each time for the same reason twice as late (5 s to 300 s, at first +-25 %, later +-50 %). Returns the wait in seconds.

        A reconcile that something else caused before that time does not make it later.
        """
        now = asyncio.get_running_loop().time()
        known = self._retries.get(key)
        if known is None or known.reason != reason:
            known = self._retries[key] = _Retry(reason, 0, now)
        if known.due <= now:
            known.tries += 1
            longest = _LONGEST_UNWATCHED_S.get(reason, _LONGEST_RETRY_S)
            jitter = _SPREAD if known.tries >= _SPREAD_WIDE_FROM else JITTER
            known.due = now + backoff(known.tries, _FIRST_RETRY_S, longest, jitter)
        if reason.startswith(BLOCKED):
            blocked = self._blocked.setdefault(key[0], OrderedDict())
            blocked[key] = None  # where it was, or at the end
        self.add_after(key, known.due - now)
        return known.due - now

    def settled(self, key: Key) -> None:
        """The job proceeds or is gone: the next retry is a first one."""
        if self._retries.pop(key, None) is not None:
            self._unblock(key)

    def freed(self, namespace: str) -> list[Key]:
        """Something that may let a job of this namespace proceed has happened: reconcile the two that have waited longest, and
        return them. Each that proceeds calls this again, so that a thousand are not woken for one place."""
        keys = list(self._blocked.get(namespace, ()))[:_WOKEN_AT_ONCE]
        for key in keys:
            self._unblock(key)
            self.add(key)
        return keys

    # What workers call.

    async def get(self) -> Key | None:
        """The next key, which is then in work; None when the queue was closed."""
        while not self._lanes:
            if self._closed:
                return None
            self._available.clear()
            await self._available.wait()
        namespace, lane = next(iter(self._lanes.items()))
        key = self._next(lane)
        now = asyncio.get_running_loop().time()
        queued = self._queued.pop(key)
        self._new -= queued.priority is Priority.NEW
        metrics.queue_wait_seconds.labels(*_LABELS).observe(now - queued.since)
        self._in_work[key] = now
        self._in_work_of[namespace] += 1
        if not self._has_more(lane):
            del self._lanes[namespace]
        elif self._in_work_of[namespace] >= self._share:
            self._full[namespace] = self._lanes.pop(namespace)
        else:
            self._lanes.move_to_end(namespace)
        timer = self._later.pop(key, None)  # the reconcile that it would ask for is this one
        if timer is not None:
            timer.cancel()
        return key

    def done(self, key: Key) -> None:
        """The worker that took the key has finished."""
        began, namespace = self._in_work.pop(key), key[0]
        metrics.queue_work_seconds.labels(*_LABELS).observe(asyncio.get_running_loop().time() - began)
        self._finished.set()
        self._in_work_of[namespace] -= 1
        if not self._in_work_of[namespace]:
            del self._in_work_of[namespace]
        lane = self._full.pop(namespace, None)
        if lane is not None:
            self._lanes[namespace] = lane
            self._available.set()
        again = self._again.pop(key, None)
        if again is not None:
            self.add(key, again)

    async def idle(self, seconds: float) -> None:
        """Wait until no key is in work, for at most so long."""
        try:
            async with asyncio.timeout(seconds):
                while self._in_work:
                    self._finished.clear()
                    await self._finished.wait()
        except TimeoutError:
            pass

    def close(self) -> None:
        """No new work; workers that wait get None."""
        self._closed = True
        self.clear()
        self._available.set()

    def clear(self) -> None:
        """Forget what waits. Keys in work stay."""
        for timer in self._later.values():
            timer.cancel()
        for waiting in (self._later, self._queued, self._lanes, self._full, self._again):
            waiting.clear()
        self._new = 0
        for memory in (self._failures, self._retries, self._blocked):
            memory.clear()

    def measure(self) -> None:
        """Bring the gauges up to date."""
        now = asyncio.get_running_loop().time()
        running = [now - began for began in self._in_work.values()]
        metrics.queue_depth.labels(*_LABELS).set(len(self._queued))
        metrics.queue_unfinished_seconds.labels(*_LABELS).set(sum(running))
        metrics.queue_longest_seconds.labels(*_LABELS).set(max(running, default=0.0))
        metrics.active_workers.labels(metrics.CONTROLLER).set(len(running))
        metrics.jobs_blocked.set(sum(len(blocked) for blocked in self._blocked.values()))

    # Within.

    def _lane(self, namespace: str) -> _Lane:
        lane = self._lanes.get(namespace) or self._full.get(namespace)
        if lane is None:
            full = self._in_work_of[namespace] >= self._share
            lane = (self._full if full else self._lanes)[namespace] = _Lane()
        return lane

    def _next(self, lane: _Lane) -> Key:
        for priority, waiting in zip(Priority, lane.waiting, strict=True):
            while waiting:
                key = waiting.popleft()
                queued = self._queued.get(key)
                if queued is not None and queued.priority == priority:
                    return key
        raise AssertionError("a namespace without keys had a turn")

    def _has_more(self, lane: _Lane) -> bool:
        for priority, waiting in zip(Priority, lane.waiting, strict=True):
            while waiting:
                queued = self._queued.get(waiting[0])
                if queued is not None and queued.priority == priority:
                    return True
                waiting.popleft()
        return False

    def _unblock(self, key: Key) -> None:
        blocked = self._blocked.get(key[0])
        if blocked is not None:
            blocked.pop(key, None)
            if not blocked:
                del self._blocked[key[0]]

    def _due(self, key: Key) -> None:
        self._later.pop(key, None)
        self.add(key)
