"""Comparing the cache with the API server's own lists: whole at the start, by metadata alone later.

The first sweep is what makes the cache complete: before it nobody may believe that something is gone. Later ones find
what a watch has missed: deletions between two lists, and a watch that died without saying so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from finetune_operator.runtime.cache import Cache
from finetune_operator.runtime.client import Client
from finetune_operator.runtime.errors import ApiError, Unreachable
from finetune_operator.runtime.queue import Key
from finetune_operator.runtime.resources import WATCHED, Resource
from finetune_operator.telemetry import metrics

logger = logging.getLogger(__name__)

_SETTLE_S = 2.0
_RETRY_S = 2.0
_DEAD_AFTER = 2
"""Sweeps in a row that find something newer than the watch told of."""


class Resync:
    """`namespaces` empty: all of them. `wake` is told of jobs whose plan may change."""

    def __init__(self, client: Client, cache: Cache, namespaces: tuple[str, ...], wake: Callable[[Key], None]) -> None:
        self._client, self._cache, self._wake = client, cache, wake
        self._namespaces: tuple[str | None, ...] = namespaces or (None,)
        self._missed = dict.fromkeys((resource.kind for resource in WATCHED), 0)

    @property
    def dead_watch(self) -> str | None:
        """The kind whose watch does not tell what happens."""
        return next((kind for kind, missed in self._missed.items() if missed >= _DEAD_AFTER), None)

    async def fill(self) -> None:
        """Take in everything there is, however long the API server needs to be reached."""
        for resource in WATCHED:
            for namespace in self._namespaces:
                await _stubbornly(lambda r=resource, n=namespace: self._fill(r, n), resource.kind)  # type: ignore[misc]
        for key in self._cache.names():
            self._wake(key)

    async def repeat(self, interval: float) -> None:
        """Sweep again and again."""
        while True:
            await asyncio.sleep(interval)
            for resource in WATCHED:
                try:
                    await self._compare(resource)
                except (ApiError, Unreachable) as error:
                    logger.warning("sweep failed", extra={"kind": resource.kind, "error": str(error)})

    async def _fill(self, resource: Resource, namespace: str | None) -> None:
        async for page in self._client.pages(resource, namespace):
            for body in page:
                self._cache.observe(resource.kind, body)

    async def _compare(self, resource: Resource) -> None:
        kind = resource.kind
        before = {(namespace, name): (uid, version) for namespace, name, uid, version in self._cache.holdings(kind)}
        listed: dict[tuple[str, str], tuple[str, int]] = {}
        for where in self._namespaces:
            async for page in self._client.pages(resource, where, metadata_only=True):
                for item in page:
                    metadata = item["metadata"]
                    listed[metadata["namespace"], metadata["name"]] = (
                        metadata["uid"],
                        int(metadata["resourceVersion"]),
                    )
        await asyncio.sleep(_SETTLE_S)  # the watch may be just about to tell
        newer = [place for place, (uid, version) in listed.items() if self._cache.version(kind, *place, uid) < version]
        gone = [
            place
            for place, (uid, _) in before.items()
            if listed.get(place, ("", 0))[0] != uid and self._cache.holds(kind, *place, uid)
        ]
        for place in [*newer, *gone]:
            await self._repair(resource, place, before.get(place))
        self._missed[kind] = self._missed[kind] + 1 if newer else 0

    async def _repair(self, resource: Resource, place: tuple[str, str], had: tuple[str, int] | None) -> None:
        body = await self._client.get(resource, *place)
        key = None
        if had is not None and (body is None or body["metadata"]["uid"] != had[0]):
            key = self._cache.forget(resource.kind, *place, had[0])
        if body is not None:
            key = self._cache.observe(resource.kind, body) or key
        if key is not None:
            metrics.cache_repairs.labels(resource.kind).inc()
            logger.warning("the watch had missed a change", extra={"kind": resource.kind, "child": "/".join(place)})
            self._wake(key)


async def _stubbornly(what: Callable[[], object], kind: str) -> None:
    while True:
        try:
            await what()  # type: ignore[misc]
            return
        except (ApiError, Unreachable) as error:
            logger.warning("cannot list yet", extra={"kind": kind, "error": str(error)})
            await asyncio.sleep(_RETRY_S)
