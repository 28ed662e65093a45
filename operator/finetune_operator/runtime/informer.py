"""Keeping the cache true: a watch for each kind and namespace, and a comparison with the API server's list from time to time.

Each informer stands alone: whatever the API server answers for one namespace (forbidden, deleted, 5xx), the others do not notice.
A namespace is complete when all its kinds were listed once. Before that nothing in it is decided, since a child that is not in
the cache yet would be taken for a missing one.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Protocol

from finetune_operator.runtime.backoff import backoff
from finetune_operator.runtime.cache import Cache, Place, version_of
from finetune_operator.runtime.client import Client
from finetune_operator.runtime.errors import ApiError, Unreachable
from finetune_operator.runtime.queue import Key
from finetune_operator.runtime.resources import FINETUNEJOB, WATCHED, Resource
from finetune_operator.telemetry import metrics

logger = logging.getLogger(__name__)

Object = dict[str, Any]

_FIRST_RETRY_S, _LONGEST_RETRY_S = 1.0, 60.0
_HEALTHY_S = 60.0
_SETTLE_S = 2.0
_SILENT_AFTER = 2
"""Comparisons in a row that find what a watch without any event has missed."""
_AT_ONCE = 8
_LIST_ALL_ABOVE = 100
"""More missed objects than this are read by one list, not each by itself."""


class Receiver(Protocol):
    """Takes what a watch finds."""

    def event(self, type: str | None, body: Object) -> None: ...

    def listed(self) -> None: ...


Watch = Callable[[Resource, str | None, Receiver], Coroutine[Any, Any, None]]
"""Lists and watches a kind in a namespace (None: all) until it is cancelled, or raises when it cannot."""


class Informer:
    """One kind in one namespace."""

    def __init__(self, resource: Resource, scope: Scope, watch: Watch, client: Client, cache: Cache) -> None:
        self.resource, self._scope = resource, scope
        self._watch, self._client, self._cache = watch, client, cache
        self.has_listed = False
        self.refused = False
        """The API server answered that we may not."""
        self.last_event: float | None = None
        self._problem: str | None = None
        self._unseen: set[Place] | None = None
        self._stream: asyncio.Task[None] | None = None
        self._quiet_comparisons = 0
        self._events_before = 0
        self._events = 0
        self.compare_soon = asyncio.Event()

    # What a watch calls. Neither fails.

    def event(self, type: str | None, body: Object) -> None:
        self.last_event = asyncio.get_running_loop().time()
        self._events += 1
        try:
            key = self._take(type, body)
        except Exception:  # an object that we cannot read must not stop the watch of all others
            logger.exception("an object cannot be read", extra=self._where())
        else:
            self._scope.changed(key, listed=type is None)

    def _take(self, type: str | None, body: Object) -> Key | None:
        kind, metadata = self.resource.kind, body["metadata"]
        if type is None:
            if self._unseen is None:  # a list begins
                self._unseen = self._places()
            self._unseen.discard((metadata["namespace"], metadata["name"]))
        key = self._cache.observe(kind, body)
        if type == "DELETED":  # with its last state, which no event before may have shown
            place = metadata["namespace"], metadata["name"]
            key = self._cache.forget(kind, *place, metadata["uid"], version_of(body)) or key
        return key

    def listed(self) -> None:
        if self._places() if self._unseen is None else self._unseen:
            self.compare_soon.set()  # deleted while no watch ran, or created by us since: the comparison tells which
        self._unseen = None
        if self._problem is not None:
            logger.info("watching again", extra=self._where())
        self.has_listed, self.refused, self._problem = True, False, None
        self._scope.informer_listed()

    # Its life.

    async def run(self) -> None:
        """Watch for ever. Errors are logged once for each cause."""
        loop, failures = asyncio.get_running_loop(), 0
        while True:
            began = loop.time()
            self._unseen = None
            self._stream = asyncio.create_task(self._watch(self.resource, self._scope.namespace, self))
            try:
                await asyncio.wait({self._stream})
            finally:
                self._stream.cancel()
            if self._stream.cancelled():  # by restart()
                reason = "silent"
            else:
                reason = "failed"
                self._failed(self._stream.exception())
            metrics.watch_restarts.labels(self.resource.kind, reason).inc()
            failures = 1 if loop.time() - began >= _HEALTHY_S else failures + 1
            await asyncio.sleep(backoff(failures, _FIRST_RETRY_S, _LONGEST_RETRY_S))

    def restart(self) -> None:
        """List and watch again."""
        if self._stream is not None:
            self._stream.cancel()

    async def compare(self) -> None:
        """Find what the watch has missed, from a list of metadata. Raises ApiError and Unreachable."""
        kind, namespace = self.resource.kind, self._scope.namespace
        before = {place: (uid, version) for place, uid, version in self._cache.holdings(kind, namespace)}
        listed = await self._versions()
        await asyncio.sleep(_SETTLE_S)  # the watch may be about to deliver them
        version = self._cache.version
        newer = [place for place, (uid, at) in listed.items() if version(kind, *place, uid) < at]
        gone = [
            (place, uid, at)
            for place, (uid, at) in before.items()
            if listed.get(place, ("", 0))[0] != uid and version(kind, *place, uid) == at
        ]
        for place, uid, at in gone:
            self._repaired(place, self._cache.forget(kind, *place, uid, at))
        await self._read(newer)
        self._judge_watch(bool(newer))

    def _judge_watch(self, missed: bool) -> None:
        silent = missed and self._events == self._events_before
        self._events_before = self._events
        self._quiet_comparisons = self._quiet_comparisons + 1 if silent else 0
        if self._quiet_comparisons >= _SILENT_AFTER:
            self._quiet_comparisons = 0
            logger.warning("the watch delivers nothing; it is restarted", extra=self._where())
            self.restart()

    async def _versions(self) -> dict[Place, tuple[str, int]]:
        found: dict[Place, tuple[str, int]] = {}
        async for page in self._client.pages(self.resource, self._scope.namespace, metadata_only=True):
            for item in page:
                try:
                    metadata = item["metadata"]
                    version = int(metadata["resourceVersion"])
                    found[metadata["namespace"], metadata["name"]] = (metadata["uid"], version)
                except (KeyError, TypeError, ValueError) as error:
                    raise ApiError(
                        200, "Malformed", f"an item of the list of {self.resource.plural}: {error!r}"
                    ) from error
        return found

    async def _read(self, places: list[Place]) -> None:
        """Take in objects that the watch has missed. An error of one leaves it to the next comparison."""
        if len(places) > _LIST_ALL_ABOVE:
            async for page in self._client.pages(self.resource, self._scope.namespace):
                for body in page:
                    metadata = body["metadata"]
                    self._repaired(
                        (metadata["namespace"], metadata["name"]), self._cache.observe(self.resource.kind, body)
                    )
            return
        at_once = asyncio.Semaphore(_AT_ONCE)

        async def read(place: Place) -> None:
            async with at_once:
                try:
                    body = await self._client.get(self.resource, *place)
                except (ApiError, Unreachable) as error:
                    logger.warning("cannot read what the watch missed", extra=self._where(error=str(error)))
                    return
            if body is not None:
                self._repaired(place, self._cache.observe(self.resource.kind, body))

        await asyncio.gather(*(read(place) for place in places))

    def _places(self) -> set[Place]:
        return {place for place, _, _ in self._cache.holdings(self.resource.kind, self._scope.namespace)}

    def _repaired(self, place: Place, key: Key | None) -> None:
        if key is not None:
            metrics.cache_repairs.labels(self.resource.kind).inc()
            logger.warning("the watch had missed a change", extra=self._where(child="/".join(place)))
            self._scope.changed(key, listed=False)

    def _failed(self, error: BaseException | None) -> None:
        self.refused = isinstance(error, ApiError) and error.code == 403
        if error is None:
            problem = "the watch ended"
        elif isinstance(error, ApiError) and error.code == 404 and self.resource is FINETUNEJOB:
            problem = (
                "the FineTuneJob CustomResourceDefinition is not installed: "
                "apply crds/finetunejobs.yaml, or set crds.install in the chart"
            )
        elif isinstance(error, (ApiError, Unreachable)):
            problem = str(error)
        else:
            problem = f"{type(error).__name__}: {error}"
            logger.error("a watch failed by an error of the operator", exc_info=error, extra=self._where())
        if problem != self._problem:
            logger.warning("cannot watch; trying again", extra=self._where(error=problem))
        self._problem = problem
        self._scope.informer_failed()

    def _where(self, **more: str) -> dict[str, str]:
        return {"kind": self.resource.kind, "watched_namespace": self._scope.namespace or "*", **more}


class Scope:
    """A watched namespace, or the whole cluster (None)."""

    def __init__(
        self, namespace: str | None, watch: Watch, client: Client, cache: Cache, wake: Callable[[Key, bool], None]
    ) -> None:
        self.namespace, self._cache, self._wake = namespace, cache, wake
        self.informers = [Informer(resource, self, watch, client, cache) for resource in WATCHED]
        self.complete = False
        self.on_change: Callable[[], None] = lambda: None

    @property
    def pending(self) -> bool:
        """It may still become complete soon: nobody has refused it."""
        return not self.complete and not any(informer.refused for informer in self.informers)

    def changed(self, key: Key | None, listed: bool) -> None:
        if key is not None and self.complete:
            self._wake(key, listed)

    def informer_listed(self) -> None:
        if not self.complete and all(informer.has_listed for informer in self.informers):
            self.complete = True
            for key in self._cache.names(self.namespace):
                self._wake(key, True)
            self.on_change()

    def informer_failed(self) -> None:
        self.on_change()


class Informers:
    """All watched namespaces (none given: the cluster). `wake(key, listed)` is called for jobs whose plan may change;
    `listed`: by a list of everything, so it is not urgent."""

    def __init__(
        self,
        namespaces: tuple[str, ...],
        watch: Watch,
        client: Client,
        cache: Cache,
        wake: Callable[[Key, bool], None],
    ) -> None:
        where: tuple[str | None, ...] = namespaces or (None,)
        self.scopes = [Scope(namespace, watch, client, cache, wake) for namespace in where]
        self._informers = [informer for scope in self.scopes for informer in scope.informers]
        self._changed = asyncio.Event()
        for scope in self.scopes:
            scope.on_change = self._changed.set

    @property
    def ready(self) -> bool:
        """Every namespace that can be listed is in the cache, and there is one."""
        return any(scope.complete for scope in self.scopes) and not any(scope.pending for scope in self.scopes)

    def covers(self, key: Key) -> bool:
        """Whether the cache is complete around a job."""
        return any(scope.complete for scope in self.scopes if scope.namespace in (None, key[0]))

    async def wait_ready(self) -> None:
        while not self.ready:
            self._changed.clear()
            await self._changed.wait()

    def tasks(self, interval: float) -> Iterator[tuple[str, Callable[[], Coroutine[Any, Any, None]]]]:
        """What has to run, by name: each watch, and its comparison with a list every `interval` seconds."""
        for informer in self._informers:
            yield "watch", informer.run
            yield "resync", functools.partial(self._compare, informer, interval)

    async def _compare(self, informer: Informer, interval: float) -> None:
        """No error ends it."""
        while True:
            try:
                async with asyncio.timeout(backoff(1, interval, interval, jitter=0.1)):
                    await informer.compare_soon.wait()
            except TimeoutError:
                pass
            informer.compare_soon.clear()
            if not informer.has_listed or informer.refused:
                continue
            try:
                await informer.compare()
            except (ApiError, Unreachable) as error:
                logger.warning("resync failed", extra={"kind": informer.resource.kind, "error": str(error)})
            except Exception:
                logger.exception("resync failed by an error of the operator", extra={"kind": informer.resource.kind})

    def measure(self) -> None:
        """Bring the gauges up to date."""
        now = asyncio.get_running_loop().time()
        for resource in WATCHED:
            times = [i.last_event for i in self._informers if i.resource is resource and i.last_event is not None]
            if times:
                metrics.watch_age_seconds.labels(resource.kind).set(now - max(times))
        metrics.namespaces_unwatched.set(sum(not scope.complete for scope in self.scopes))
