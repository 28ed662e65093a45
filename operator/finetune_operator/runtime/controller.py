"""The running operator: cache, queue and workers, from the first list to the last write."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any, get_args

from finetune_api.contract import PROGRESS_PORT
from finetune_api.status import Phase

from finetune_operator.domain.observed import ProgressReading
from finetune_operator.domain.plan_builder import Config
from finetune_operator.runtime.cache import Cache
from finetune_operator.runtime.client import Client
from finetune_operator.runtime.connection import Connection
from finetune_operator.runtime.errors import ApiError, Conflict, Unreachable
from finetune_operator.runtime.poller import Poller
from finetune_operator.runtime.queue import Key, WorkQueue
from finetune_operator.runtime.reconciler import Reconciler
from finetune_operator.runtime.recorder import Recorder
from finetune_operator.runtime.resources import FINETUNEJOB
from finetune_operator.runtime.resync import Resync
from finetune_operator.telemetry import metrics
from finetune_operator.telemetry.logs import key_in_work

logger = logging.getLogger(__name__)

_RECONCILE_S = 60.0
_MEASURE_S = 5.0
_LATE_S = 10.0
_NO_KIND_RETRY_S = 2.0
PHASES: tuple[str, ...] = get_args(Phase)


class Controller:
    """Made inside the event loop that it runs in."""

    def __init__(
        self,
        connection: Connection,
        config: Config,
        *,
        namespaces: tuple[str, ...] = (),
        workers: int = 32,
        poll_seconds: float = 15.0,
        sweep_seconds: float = 300.0,
        progress_port: int = PROGRESS_PORT,
    ) -> None:
        self.client = Client(connection)
        self.cache = Cache()
        self.queue = WorkQueue()
        self.synced = False
        self._workers, self._sweep_seconds = workers, sweep_seconds
        self._recorder = Recorder(self.client)
        self._poller = Poller(poll_seconds, self._progress, progress_port)
        self._sweeper = Resync(self.client, self.cache, namespaces, self.queue.add)
        self._reconciler = Reconciler(self.client, self.cache, self._recorder, self._poller, config)
        self._worker_tasks: list[asyncio.Task[None]] = []
        self._background: list[asyncio.Task[None]] = []
        self._last_event: dict[str, float] = {}
        self._beat = time.monotonic()

    # What handlers call.

    def event(self, kind: str, type: str | None, body: dict[str, Any]) -> None:
        """Something happened to an object that we watch. Never fails: kopf would only log it."""
        self._last_event[kind] = time.monotonic()
        metadata = body["metadata"]
        if type == "DELETED":
            self.cache.observe(kind, body)  # its last state, which no other event may have told
            key = self.cache.forget(kind, metadata["namespace"], metadata["name"], metadata["uid"])
        else:
            key = self.cache.observe(kind, body)
        # Before the cache is complete nothing is decided; afterwards every job is looked at anyway.
        if key is not None and self.synced:
            self.queue.add(key)

    def unhealthy(self) -> str | None:
        """Why this process should be started anew; None when it is well."""
        late = time.monotonic() - self._beat - _MEASURE_S
        if late > _LATE_S:
            return f"the event loop is {late:.0f} s late"
        kind = self._sweeper.dead_watch
        return f"the watch of {kind} tells nothing any more" if kind is not None else None

    # Its life.

    async def wait_for_kind(self) -> None:
        """Wait until the API server knows FineTuneJobs."""
        told = False
        while True:
            try:
                if await self.client.served(FINETUNEJOB):
                    return
                problem = "the FineTuneJob CustomResourceDefinition is not installed (crds/finetunejobs.yaml, or crds.install in the chart)"
            except (ApiError, Unreachable) as error:
                problem = f"the API server cannot be used: {error}"
            if not told:
                logger.warning("waiting: %s", problem)
                told = True
            await asyncio.sleep(_NO_KIND_RETRY_S)

    async def start(self) -> None:
        """Fill the cache, then let the workers loose."""
        self._background.append(asyncio.create_task(self._measure(), name="measure"))
        await self._sweeper.fill()
        self.synced = True
        for key in self.cache.names():
            self.queue.add(key)
        self._background.append(asyncio.create_task(self._recorder.run(), name="recorder"))
        self._background.append(asyncio.create_task(self._sweeper.repeat(self._sweep_seconds), name="sweeper"))
        self._worker_tasks = [asyncio.create_task(self._work(), name=f"worker-{n}") for n in range(self._workers)]
        logger.info("started", extra={"jobs": len(self.cache.names()), "workers": self._workers})

    async def stop(self, seconds: float) -> None:
        """No new work; writes in flight may end, within so many seconds."""
        began = time.monotonic()
        self.queue.close()
        if self._worker_tasks:
            _, late = await asyncio.wait(self._worker_tasks, timeout=seconds * 0.7)
            for task in late:
                task.cancel()
        await self._recorder.flush(max(0.5, seconds - (time.monotonic() - began)))
        await self._poller.close()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, *self._worker_tasks, return_exceptions=True)
        await self.client.close()
        logger.info("stopped")

    # Within.

    def _progress(self, key: Key, reading: ProgressReading) -> None:
        held = self.cache.finetunejob(key)
        if held is not None:
            held.facts.progress = reading
            self.queue.add(key)

    async def _work(self) -> None:
        while (key := await self.queue.get()) is not None:
            token = key_in_work.set(key)
            try:
                await self._reconcile(key)
            finally:
                self.queue.done(key)
                key_in_work.reset(token)

    async def _reconcile(self, key: Key) -> None:
        """One look, and what its errors mean for the next. No error ends a worker."""
        began, result = time.monotonic(), "success"
        try:
            async with asyncio.timeout(_RECONCILE_S):
                again = await self._reconciler.reconcile(key)
            self.queue.forget(key)
            held = self.cache.finetunejob(key)
            if again.retry is None:
                self.queue.settled(key)
            elif held is not None:
                result = "requeue_after"
                held.facts.retry_in(self.queue.retry(key, again.retry))
            if again.after is not None:
                result = "requeue_after"
                self.queue.add_after(key, again.after)
        except Conflict:
            result = "requeue"
            self.queue.add_failed(key)
        except (ApiError, Unreachable) as error:
            result = "error"
            wait = self.queue.add_failed(key, at_least=getattr(error, "retry_after", None) or 0.0)
            logger.warning("request failed", extra={"error": str(error), "again_in_s": round(wait, 2)})
        except TimeoutError:
            result = "error"
            metrics.reconcile_timeouts.labels(metrics.CONTROLLER).inc()
            self.queue.add_failed(key)
            logger.error("a look took longer than %s s", _RECONCILE_S)
        except Exception:
            result = "error"
            self.queue.add_failed(key, at_least=1.0)
            logger.exception("a look failed by an error of the operator")
        if result == "error":
            metrics.reconcile_errors.labels(metrics.CONTROLLER).inc()
        metrics.reconciles.labels(metrics.CONTROLLER, result).inc()
        metrics.reconcile_seconds.labels(metrics.CONTROLLER).observe(time.monotonic() - began)

    async def _measure(self) -> None:
        """Gauges, and how late the event loop is."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _MEASURE_S
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.sleep(_MEASURE_S)
            metrics.loop_lag_seconds.set(max(0.0, loop.time() - due))
            self._beat = time.monotonic()
            self.queue.measure()
            phases = self.cache.phases()
            for phase in PHASES:
                metrics.jobs.labels(phase).set(phases[phase])
            metrics.gpus_allocated.set(self.cache.gpus())
            for kind, at in self._last_event.items():
                metrics.watch_age_seconds.labels(kind).set(time.monotonic() - at)
