"""Events for people (`kubectl describe`), in events.k8s.io/v1: written in the background, never twice, never in floods."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import socket
import time
from dataclasses import dataclass
from typing import Any

from finetune_api import API_VERSION, KIND

from finetune_operator.domain.plan_builder import Event
from finetune_operator.domain.times import micro_stamp
from finetune_operator.runtime.client import Client
from finetune_operator.runtime.errors import ApiError, Unreachable
from finetune_operator.runtime.resources import EVENT
from finetune_operator.telemetry import metrics

logger = logging.getLogger(__name__)

REPORTER = "finetune.dev/operator"
_BURST = 25
_REFILL_S = 300.0
_SAME_S = 600.0
_NOTE_BYTES = 1024
"""The API server refuses longer ones, and counts bytes."""
_WAITING = 10_000
_WRITERS = 4
_WRITE_S = 5.0


def _fitting(text: str) -> str:
    """Cut between characters."""
    data = text.encode()
    if len(data) <= _NOTE_BYTES:
        return text
    return data[: _NOTE_BYTES - len("…".encode())].decode(errors="ignore") + "…"


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class Recorder:
    """As client-go's correlator: 25 events an object at once, then one every 5 minutes; the same one again after 10 minutes."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._queue: asyncio.Queue[tuple[dict[str, Any], Event, float]] = asyncio.Queue(_WAITING)
        self._buckets: dict[str, _Bucket] = {}
        self._said: dict[str, float] = {}
        self._latest = 0.0
        self._instance = socket.gethostname()[:128]

    def say(self, metadata: dict[str, Any], note: Event, now: float) -> None:
        """Tell of a job. `now` in seconds since 1970."""
        same = hashlib.sha256(f"{metadata['uid']}\0{note.reason}\0{note.text}".encode()).hexdigest()[:16]
        monotonic = time.monotonic()
        if monotonic - self._said.get(same, float("-inf")) < _SAME_S:
            metrics.events_dropped.labels("repeated").inc()
            return
        if not self._allowed(metadata["uid"], monotonic):
            metrics.events_dropped.labels("limited").inc()
            return
        self._said.pop(same, None)
        self._said[same] = monotonic
        self._forget_old(monotonic)
        self._latest = at = max(now, self._latest + 1e-5)  # told in this order, so seen in this order
        try:
            self._queue.put_nowait((metadata, note, at))
        except asyncio.QueueFull:
            metrics.events_dropped.labels("full").inc()

    async def run(self) -> None:
        """Write what is said, for ever. Several at once, so that a namespace whose webhook hangs does not stop the others'."""
        async with asyncio.TaskGroup() as group:
            for _ in range(_WRITERS):
                group.create_task(self._write())

    async def _write(self) -> None:
        while True:
            metadata, note, now = await self._queue.get()
            try:
                async with asyncio.timeout(_WRITE_S):
                    await self._client.create(EVENT, self._body(metadata, note, now))
            except (ApiError, Unreachable, TimeoutError) as error:
                # Namespaces that are going take none, and an event is not worth a second try.
                metrics.events_dropped.labels("refused").inc()
                logger.info("event not written", extra={"reason": note.reason, "error": str(error)})
            finally:
                self._queue.task_done()

    async def flush(self, seconds: float) -> None:
        """Wait for what was said to be written, for at most so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._queue.join()
        except TimeoutError:
            pass

    def _body(self, metadata: dict[str, Any], note: Event, now: float) -> dict[str, Any]:
        return {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            # kubectl describe shows events in the order of their names.
            "metadata": {"name": f"{metadata['name']}.{int(now * 1e9):016x}", "namespace": metadata["namespace"]},
            "eventTime": micro_stamp(now),
            "reportingController": REPORTER,
            "reportingInstance": self._instance,
            "type": note.type,
            "reason": str(note.reason),
            "action": note.action,
            "note": _fitting(note.text),
            "regarding": {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
                "resourceVersion": metadata["resourceVersion"],
            },
        }

    def _allowed(self, uid: str, now: float) -> bool:
        bucket = self._buckets.pop(uid, None) or _Bucket(_BURST, now)
        self._buckets[uid] = bucket
        bucket.tokens = min(_BURST, bucket.tokens + (now - bucket.at) / _REFILL_S)
        bucket.at = now
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True

    def _forget_old(self, now: float) -> None:
        """Both are in the order of their last use, so that each event looks at one old entry, not at all."""
        while (same := next(iter(self._said), None)) is not None and now - self._said[same] >= _SAME_S:
            del self._said[same]
        while (uid := next(iter(self._buckets), None)) is not None and now - self._buckets[uid].at > _BURST * _REFILL_S:
            del self._buckets[uid]
