"""The running operator: cache, queue and workers, from the first list to the last write."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import get_args

from finetune_api.contract import PROGRESS_PORT
from finetune_api.status import Phase

from finetune_operator.domain.observed import ProgressReading
from finetune_operator.domain.plan_builder import Config
from finetune_operator.runtime.cache import Cache
from finetune_operator.runtime.client import Client
from finetune_operator.runtime.connection import Connection
from finetune_operator.runtime.errors import ApiError, Conflict, Deferred, Unreachable
from finetune_operator.runtime.informer import Informers, Watch
from finetune_operator.runtime.leader import Elector
from finetune_operator.runtime.poller import Poller
from finetune_operator.runtime.queue import Key, Priority, WorkQueue
from finetune_operator.runtime.reconciler import Reconciler
from finetune_operator.runtime.recorder import Recorder
from finetune_operator.runtime.supervisor import Supervisor
from finetune_operator.telemetry import metrics
from finetune_operator.telemetry.logs import key_in_work

logger = logging.getLogger(__name__)

_RECONCILE_S = 60.0
_END_WORK_S = 2.0
_MEASURE_S = 5.0
_LATE_S = 10.0
PHASES: tuple[str, ...] = get_args(Phase)


class Controller:
    """Created inside the event loop that it runs in."""

    def __init__(
        self,
        connection: Connection,
        watch: Watch,
        config: Config,
        *,
        namespaces: tuple[str, ...] = (),
        workers: int = 64,
        poll_seconds: float = 15.0,
        resync_seconds: float = 300.0,
        progress_port: int = PROGRESS_PORT,
        elector: Elector | None = None,
    ) -> None:
        self.client = Client(connection)
        self.cache = Cache()
        self.cache.on_freed = self._freed
        self.queue = WorkQueue(share=max(4, workers // 4))
        self._workers, self._resync_seconds = workers, resync_seconds
        self._recorder = Recorder(self.client)
        self._poller = Poller(poll_seconds, self._progress, progress_port)
        self._informers = Informers(namespaces, watch, self.client, self.cache, self._wake)
        self._reconciler = Reconciler(
            self.client,
            self.cache,
            self._recorder,
            self._poller,
            config,
            clock=connection.clock.now,
            new_jobs_wait=self.queue.new_jobs_wait,
        )
        self._elector = elector
        self._election: asyncio.Task[None] | None = None
        self._worker_tasks: list[asyncio.Task[None]] = []
        self._supervisor = Supervisor()
        self._beat = time.monotonic()

    @property
    def ready(self) -> bool:
        """Every namespace that can be listed is in the cache."""
        return self._informers.ready

    def unhealthy(self) -> str | None:
        """Why this process should be restarted; None when it is well. Nothing but the event loop counts: neither the API
        server nor a tenant may cause a restart, which would repair nothing."""
        late = time.monotonic() - self._beat - _MEASURE_S
        return f"the event loop is {late:.0f} s late" if late > _LATE_S else None

    # Its life.

    def start(self) -> None:
        """Watch; work while this replica leads, in each namespace as soon as it is in the cache."""
        self._supervisor.start("measure", self._measure)
        for name, run in self._informers.tasks(self._resync_seconds):
            self._supervisor.start(name, run)
        self._supervisor.start("recorder", self._recorder.run)
        self._supervisor.start("ready", self._report_ready)
        if self._elector is None:
            self._begin_work()
        else:
            elector = self._elector
            self._election = self._supervisor.start("leader", lambda: elector.run(self._begin_work, self._end_work))

    async def stop(self, seconds: float) -> None:
        """No new work; writes in flight may end, within so many seconds. Then a standby may lead."""
        began = time.monotonic()
        self.queue.close()
        await self.queue.idle(seconds * 0.7)
        if self._elector is not None and self._election is not None:
            self._election.cancel()
            await asyncio.gather(self._election, return_exceptions=True)
            await self._elector.close()
        await self._recorder.flush(max(0.5, seconds - (time.monotonic() - began)))
        await self._poller.close()
        await self._supervisor.stop()
        await self.client.close()
        logger.info("stopped")

    def _begin_work(self) -> None:
        self._worker_tasks = [self._supervisor.start("worker", self._work) for _ in range(self._workers)]
        for key in self.cache.names():
            if self._informers.covers(key):
                self._wake(key, listed=True)

    async def _end_work(self) -> None:
        """Within the time between the end of a leadership and the next one's earliest beginning."""
        self.queue.clear()
        await self.queue.idle(_END_WORK_S)
        for task in self._worker_tasks:
            task.cancel()
        await asyncio.gather(*self._worker_tasks, return_exceptions=True)
        self._worker_tasks = []
        self.queue.clear()
        await self._poller.close()

    @property
    def _works(self) -> bool:
        return self._elector is None or self._elector.leads

    async def _report_ready(self) -> None:
        await self._informers.wait_ready()
        logger.info("started", extra={"jobs": len(self.cache.names()), "workers": self._workers})
        await asyncio.Event().wait()

    # What wakes a job.

    def _wake(self, key: Key, listed: bool) -> None:
        if not self._works:
            return  # every job is reconciled when this replica begins to lead
        held = self.cache.finetunejob(key)
        if held is not None and held.phase is None and not self.cache.has_children(held):
            self.queue.add(key, Priority.NEW)
        elif listed and held is not None and held.phase in ("Completed", "Failed"):
            self.queue.add(key, Priority.LATER)
        else:
            self.queue.add(key)

    def _freed(self, namespace: str) -> None:
        for key in self.queue.freed(namespace):
            held = self.cache.finetunejob(key)
            if held is not None:
                held.facts.retry_now()

    def _progress(self, key: Key, reading: ProgressReading) -> None:
        held = self.cache.finetunejob(key)
        if held is not None:
            held.facts.progress = reading
            self.queue.add(key)

    # Workers.

    async def _work(self) -> None:
        while (key := await self.queue.get()) is not None:
            token = key_in_work.set(key)
            try:
                if self._works:
                    await self._reconcile(key)
            finally:
                self.queue.done(key)
                key_in_work.reset(token)
            await asyncio.sleep(0)  # thousands of keys without a request must not keep the loop from everything else
        await asyncio.Event().wait()  # until the process has stopped

    async def _reconcile(self, key: Key) -> None:
        """One reconcile, and what its errors mean for the next. No error ends a worker."""
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
            if again.unfinished:
                self.queue.add(key)
            if again.after is not None:
                result = "requeue_after"
                self.queue.add_after(key, again.after)
        except Deferred as later:
            result = "requeue_after"
            self.queue.add_after(key, later.seconds)
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
            logger.error("a reconcile took longer than %s s", _RECONCILE_S)
        except Exception:
            result = "error"
            self.queue.add_failed(key, at_least=1.0)
            logger.exception("a reconcile failed by an error of the operator")
        if result == "error":
            metrics.reconcile_errors.labels(metrics.CONTROLLER).inc()
        metrics.reconciles.labels(metrics.CONTROLLER, result).inc()
        metrics.reconcile_seconds.labels(metrics.CONTROLLER).observe(time.monotonic() - began)

    async def _measure(self) -> None:
        """Gauges, and how late the event loop is."""
        loop = asyncio.get_running_loop()
        while True:
            self._beat = time.monotonic()
            due = loop.time() + _MEASURE_S
            await asyncio.sleep(_MEASURE_S)
            metrics.loop_lag_seconds.set(max(0.0, loop.time() - due))
            self.queue.measure()
            self._informers.measure()
            self._poller.measure()
            for phase in PHASES:
                metrics.jobs.labels(phase).set(self.cache.phases[phase])
            metrics.gpus_allocated.set(self.cache.gpus)
