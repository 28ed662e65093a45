"""Reads how far trainings are, from rank 0's endpoint, and wakes their plans no more often than the status may be written.

The endpoint is not trusted: its answer is bounded in size and time, validated, and never followed anywhere else.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp
from finetune_api.contract import PROGRESS_MAX_BYTES, PROGRESS_PATH, PROGRESS_PORT, Progress

from finetune_operator.domain.diagnosis import termination_message
from finetune_operator.domain.observed import PodView, ProgressReading
from finetune_operator.runtime.queue import Key
from finetune_operator.runtime.write_budget import WriteBudget
from finetune_operator.telemetry import metrics

logger = logging.getLogger(__name__)

_ANSWER_S = 2.0
_AT_ONCE = 64
_UNCHANGED_S = 60.0
# In intervals between two readings.
_SOON, _LOADING, _SILENT = 0.2, 4.0, 2.0


@dataclass(slots=True)
class _Follower:
    pod: PodView
    task: asyncio.Task[None]
    answered: float
    """When it last did, or since when it is asked."""


@dataclass(slots=True)
class Watch:
    """What one pod has told: when to read it again, and what of it is news. Times in seconds of one clock."""

    interval: float
    since: float
    first: float | None = None
    moves: bool = False
    told: tuple[int, bool] | None = None
    told_at: float = 0.0
    silent_since: float | None = None
    silence_told: bool = False

    def pause(self, now: float) -> float:
        """Until the next reading. Short until it moves, for as long as loading may take: a training may be over in one
        interval, and its first step is what people wait to see."""
        loads = not self.moves and now - self.since < _LOADING * self.interval
        return self.interval * (_SOON if loads else 1)

    def silent(self, now: float) -> bool:
        """It did not answer: whether that is to be told, which is once, and not of one that has just begun."""
        if self.silent_since is None:
            self.silent_since = now
        due = not self.silence_told and now - self.silent_since >= _SILENT * self.interval
        self.silence_told |= due
        return due

    def answered(self, percent: float, now: float, budget: WriteBudget) -> bool:
        """Whether that is to be told, as far as there is budget for it."""
        self.first = percent if self.first is None else self.first
        self.moves |= percent > self.first
        news = (int(percent), self.moves)
        due = news != self.told or now - self.told_at >= _UNCHANGED_S or self.silence_told
        self.silent_since = None
        if not (due and budget.take(now)):
            return False
        self.told, self.told_at, self.silence_told = news, now, False
        return True


class Poller:
    """`tell` puts a reading before the job's plan and wakes it."""

    def __init__(
        self, interval: float, tell: Callable[[Key, ProgressReading], None], port: int = PROGRESS_PORT
    ) -> None:
        self._interval, self._tell, self._port = interval, tell, port
        self._followers: dict[Key, _Follower] = {}
        self._at_once = asyncio.Semaphore(_AT_ONCE)
        self.budget = WriteBudget()
        self._session: aiohttp.ClientSession | None = None

    def follow(self, key: Key, pod: PodView | None) -> None:
        """Read this pod from now on; None: nothing to read."""
        known = self._followers.get(key)
        if known is not None:
            if pod is not None and known.pod.uid == pod.uid and known.pod.ip == pod.ip and not known.task.done():
                return
            known.task.cancel()
            del self._followers[key]
        if pod is not None and pod.ip:
            now = asyncio.get_running_loop().time()
            self._followers[key] = _Follower(pod, asyncio.create_task(self._poll(key, pod)), now)

    async def close(self) -> None:
        for follower in self._followers.values():
            follower.task.cancel()
        await asyncio.gather(*(f.task for f in self._followers.values()), return_exceptions=True)
        self._followers.clear()
        if self._session is not None:
            await self._session.close()
            self._session = None

    def measure(self) -> None:
        """Bring the gauge up to date."""
        now = asyncio.get_running_loop().time()
        metrics.progress_age.set(max((now - f.answered for f in self._followers.values()), default=0.0))

    async def _poll(self, key: Key, pod: PodView) -> None:
        loop = asyncio.get_running_loop()
        watch = Watch(self._interval, loop.time())
        await asyncio.sleep(random.uniform(0.1, 0.2) * self._interval)
        while True:
            try:
                progress, problem = await self._read(pod)
            except Exception as error:  # whatever a pod answers, it is asked again
                logger.exception("reading progress failed by an error of the operator")
                progress, problem = None, f"pod {pod.name}: {type(error).__name__}"
            metrics.progress_polls.labels("ok" if progress is not None else "failed").inc()
            now = loop.time()
            if progress is not None and key in self._followers:
                self._followers[key].answered = now
            if watch.silent(now) if progress is None else watch.answered(progress.percent, now, self.budget):
                self._tell(key, ProgressReading(pod.uid, progress, problem))
            await asyncio.sleep(watch.pause(now))

    async def _read(self, pod: PodView) -> tuple[Progress | None, str | None]:
        if self._session is None:
            # No proxy, no cookies: a pod's address is reached directly or not at all.
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=_ANSWER_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                connector=aiohttp.TCPConnector(limit=_AT_ONCE, force_close=True),
            )
        where = f"pod {pod.name} port {self._port}"
        try:
            address = ipaddress.ip_address(pod.ip or "")
            host = f"[{address}]" if address.version == 6 else str(address)
            async with (
                self._at_once,
                self._session.get(f"http://{host}:{self._port}{PROGRESS_PATH}", allow_redirects=False) as response,
            ):
                if response.status != 200:
                    return None, f"{where} answers with {response.status}"
                content = await response.content.read(PROGRESS_MAX_BYTES + 1)
                while len(content) <= PROGRESS_MAX_BYTES and (more := await response.content.read(PROGRESS_MAX_BYTES)):
                    content += more
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            return None, f"{where} cannot be read: {str(error) or type(error).__name__}"
        if len(content) > PROGRESS_MAX_BYTES:
            return None, f"{where} answers with more than {PROGRESS_MAX_BYTES} bytes"
        progress = termination_message.progress(content)
        return progress, None if progress is not None else f"{where} does not answer with a progress record"
