"""One leader among the replicas, by a coordination.k8s.io/v1 Lease, as client-go elects it.

No clock is compared with another one: a lease counts as held until it has not changed for its duration on our own monotonic clock.
A leader that cannot renew stops its work five seconds before anybody else may begin.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from finetune_operator.domain.times import micro_stamp
from finetune_operator.runtime.client import Client
from finetune_operator.runtime.errors import ApiError, Unreachable
from finetune_operator.runtime.resources import LEASE
from finetune_operator.telemetry import metrics

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Terms:
    """Seconds. A standby reads the lease every `poll`, so that it takes over soon after a leader has released it."""

    lease: float = 15.0
    renew_deadline: float = 10.0
    retry: float = 2.0
    poll: float = 0.5


class Elector:
    """`client` should be this elector's own: requests of the work must not delay a renewal. `identity` is of one process."""

    def __init__(self, client: Client, namespace: str, name: str, identity: str, terms: Terms | None = None) -> None:
        self._client, self._namespace, self._name, self._identity = client, namespace, name, identity
        self._terms = terms or Terms()
        self._lease: dict[str, Any] | None = None
        self._changed_at = float("-inf")
        self._renewed_at = float("-inf")
        self._leads = False
        self._problem = ""
        metrics.leader.labels(name).set(0)

    @property
    def leads(self) -> bool:
        """Whether nobody else can have begun to work. False in time even for a process that was stopped and continues."""
        return self._leads and asyncio.get_running_loop().time() < self._renewed_at + self._terms.lease

    async def run(self, begin: Callable[[], None], end: Callable[[], Awaitable[None]]) -> None:
        """Lead whenever possible: `begin` the work, and `end` it before somebody else may begin."""
        while True:
            await self._acquire()
            logger.info("leading", extra={"lease": self._name})
            self._set(True)
            try:
                begin()
                await self._renew()
                logger.warning("no longer leading: the lease could not be renewed", extra={"lease": self._name})
            finally:
                self._set(False)
                await end()

    async def close(self) -> None:
        """Let a standby lead at once. Call it when the work has ended."""
        self._set(False)
        if self._holder() == self._identity:
            try:
                await self._write("")
            except (ApiError, Unreachable) as error:
                logger.warning("the lease could not be released", extra={"lease": self._name, "error": str(error)})
        await self._client.close()

    def _set(self, leads: bool) -> None:
        self._leads = leads
        metrics.leader.labels(self._name).set(leads)

    async def _acquire(self) -> None:
        while True:
            if await self._try():
                return
            await asyncio.sleep(self._terms.poll)

    async def _renew(self) -> None:
        """Until it has not succeeded for too long, or somebody else holds the lease."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._terms.retry)
            left = self._renewed_at + self._terms.renew_deadline - loop.time()
            try:
                async with asyncio.timeout(max(0.0, left)):
                    if not await self._try() and self._lease is not None and self._holder() != self._identity:
                        return
            except TimeoutError:
                return
            if loop.time() > self._renewed_at + self._terms.renew_deadline:
                return

    async def _try(self) -> bool:
        """Take the lease or renew it; whether it is ours now."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            if not self._leads:
                self._observe(await self._client.get(LEASE, self._namespace, self._name))
                if self._held_by_another():
                    return False
            await self._write(self._identity)
        except ApiError as error:
            if error.code in (404, 409):  # deleted, or somebody was faster: read it before the next attempt
                self._observe(await self._read())
            else:
                self._failed(str(error))
            return False
        except Unreachable as error:
            self._failed(str(error))
            return False
        self._renewed_at, self._problem = began, ""
        return True

    async def _read(self) -> dict[str, Any] | None:
        try:
            return await self._client.get(LEASE, self._namespace, self._name)
        except (ApiError, Unreachable):
            return self._lease

    def _observe(self, lease: dict[str, Any] | None) -> None:
        if lease is None or self._lease is None or lease.get("spec") != self._lease.get("spec"):
            self._changed_at = asyncio.get_running_loop().time()
        self._lease = lease

    def _holder(self) -> str:
        return ((self._lease or {}).get("spec") or {}).get("holderIdentity") or ""

    def _held_by_another(self) -> bool:
        if self._holder() in ("", self._identity):
            return False
        duration = ((self._lease or {}).get("spec") or {}).get("leaseDurationSeconds") or self._terms.lease
        return asyncio.get_running_loop().time() < self._changed_at + max(float(duration), self._terms.lease)

    async def _write(self, holder: str) -> None:
        """Over the version that we know, if there is one. Raises ApiError (409: it has changed) and Unreachable."""
        known = (self._lease or {}).get("spec") or {}
        now, changes_hands = micro_stamp(time.time()), bool(holder) and known.get("holderIdentity") != holder
        spec = {
            "holderIdentity": holder,
            "leaseDurationSeconds": max(1, round(self._terms.lease)) if holder else 1,
            "acquireTime": now if changes_hands else known.get("acquireTime", now),
            "renewTime": now,
            "leaseTransitions": known.get("leaseTransitions", 0) + (changes_hands and self._lease is not None),
        }
        metadata: dict[str, Any] = {"name": self._name, "namespace": self._namespace}
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
        if self._lease is None:
            self._observe(await self._client.create(LEASE, body))
        else:
            metadata["resourceVersion"] = self._lease["metadata"]["resourceVersion"]
            self._observe(await self._client.replace(LEASE, body))

    def _failed(self, problem: str) -> None:
        if problem != self._problem:
            logger.warning("the lease cannot be taken or renewed", extra={"lease": self._name, "error": problem})
        self._problem = problem
