"""Reads how far trainings are, from rank 0's endpoint, and wakes their plans no more often than the status may be written.

The endpoint is not trusted: its answer is bounded in size and time, validated, and never followed anywhere else.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp
from finetune_api.contract import PROGRESS_MAX_BYTES, PROGRESS_PATH, PROGRESS_PORT, Progress

from finetune_operator.domain import untrusted
from finetune_operator.domain.observed import PodView, ProgressReading
from finetune_operator.runtime.queue import Key
from finetune_operator.telemetry import metrics

_ANSWER_S = 2.0
_AT_ONCE = 64
_UNCHANGED_S = 60.0
_FAILURES_TOLD = 3
_SOON, _LOADING = 0.2, 4.0
_WRITES_A_SECOND = 20.0


@dataclass(slots=True)
class _Follower:
    pod: PodView
    task: asyncio.Task[None]


class WriteBudget:
    """A token bucket over all jobs: progress may not crowd out what matters more."""

    def __init__(self, rate: float = _WRITES_A_SECOND) -> None:
        self._rate, self._tokens, self._at = rate, rate, 0.0

    def take(self, now: float) -> bool:
        self._tokens = min(self._rate, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def pause(interval: float, watched: float, moves: bool) -> float:
    """Seconds to the next reading of a pod that has been watched for so many. Short until it moves, for as long as loading
    may take: a training may be over in one interval, and its first step is what people wait to see."""
    return interval if moves or watched >= _LOADING * interval else _SOON * interval


class Poller:
    """`tell` puts a reading before the job's plan and wakes it."""

    def __init__(
        self, interval: float, tell: Callable[[Key, ProgressReading], None], port: int = PROGRESS_PORT
    ) -> None:
        self._interval, self._tell, self._port = interval, tell, port
        self._followers: dict[Key, _Follower] = {}
        self._at_once = asyncio.Semaphore(_AT_ONCE)
        self._budget = WriteBudget()
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
            self._followers[key] = _Follower(pod, asyncio.create_task(self._poll(key, pod)))

    async def close(self) -> None:
        for follower in self._followers.values():
            follower.task.cancel()
        await asyncio.gather(*(f.task for f in self._followers.values()), return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def _poll(self, key: Key, pod: PodView) -> None:
        loop = asyncio.get_running_loop()
        since, told_at, told, failures = loop.time(), float("-inf"), (-1, False), 0
        first: float | None = None
        moves = False
        await asyncio.sleep(random.uniform(0.1, 0.2) * self._interval)
        while True:
            progress, problem = await self._read(pod)
            metrics.progress_polls.labels("ok" if progress is not None else "failed").inc()
            now = loop.time()
            if progress is None:
                failures += 1
                if failures == _FAILURES_TOLD:
                    self._tell(key, ProgressReading(pod.uid, None, problem))
            else:
                first = progress.percent if first is None else first
                moves = moves or progress.percent > first
                news = (int(progress.percent), moves)
                due = news != told or now - told_at >= _UNCHANGED_S or failures >= _FAILURES_TOLD
                if due and self._budget.take(now):
                    self._tell(key, ProgressReading(pod.uid, progress))
                    told_at, told = now, news
                failures = 0
            await asyncio.sleep(pause(self._interval, now - since, moves))

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
        progress = untrusted.progress(content)
        return progress, None if progress is not None else f"{where} does not answer with a progress record"
