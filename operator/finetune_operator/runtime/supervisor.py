"""Background tasks that run until the process stops. One that ends is logged, counted and started again with backoff."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from finetune_operator.runtime.backoff import backoff
from finetune_operator.telemetry import metrics

logger = logging.getLogger(__name__)

_FIRST_S, _LONGEST_S = 1.0, 60.0
_HEALTHY_S = 60.0
"""A task that ran for so long has recovered: its next failure counts as the first."""


class Supervisor:
    """For one event loop. Names are metric labels, so they are a fixed set."""

    def __init__(self, first: float = _FIRST_S) -> None:
        self._first = first
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, name: str, run: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        """Run `run()` again whenever it ends. Cancelling the returned task ends it."""
        metrics.task_restarts.labels(name)
        task = asyncio.create_task(self._keep(name, run), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def stop(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep(self, name: str, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        loop, failures = asyncio.get_running_loop(), 0
        while True:
            began = loop.time()
            try:
                await run()
                logger.error("background task ended", extra={"task": name})
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                logger.error("background task was cancelled by itself", extra={"task": name})
            except Exception:
                logger.exception("background task failed", extra={"task": name})
            metrics.task_restarts.labels(name).inc()
            failures = 1 if loop.time() - began >= _HEALTHY_S else failures + 1
            await asyncio.sleep(backoff(failures, self._first, _LONGEST_S))
