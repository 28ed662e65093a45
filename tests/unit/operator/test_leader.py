"""Leader election over a Lease that is a record in memory."""

from __future__ import annotations

import asyncio
import copy
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from finetune_operator.runtime.errors import ApiError, Unreachable
from finetune_operator.runtime.leader import Elector, Terms

from tests.unit.operator.conftest import until

TERMS = Terms(lease=2.0, renew_deadline=1.2, retry=0.3, poll=0.05)


@dataclass
class Leases:
    """The API server. `down` holds identities that get no answer."""

    lease: dict[str, Any] | None = None
    down: set[str] = field(default_factory=set)

    def client(self, identity: str) -> Any:
        return _Client(self, identity)

    @property
    def holder(self) -> str:
        return str(self.lease["spec"]["holderIdentity"]) if self.lease else ""


@dataclass
class _Client:
    leases: Leases
    identity: str

    async def get(self, resource: Any, namespace: str, name: str) -> Any:
        await self._answer()
        return copy.deepcopy(self.leases.lease)

    async def create(self, resource: Any, body: Any) -> Any:
        await self._answer()
        if self.leases.lease is not None:
            raise ApiError(409, "AlreadyExists", "")
        return self._store(body, 1)

    async def replace(self, resource: Any, body: Any) -> Any:
        await self._answer()
        if self.leases.lease is None:
            raise ApiError(404, "NotFound", "")
        version = self.leases.lease["metadata"]["resourceVersion"]
        if body["metadata"]["resourceVersion"] != version:
            raise ApiError(409, "Conflict", "")
        return self._store(body, int(version) + 1)

    async def close(self) -> None:
        pass

    def _store(self, body: Any, version: int) -> Any:
        self.leases.lease = copy.deepcopy(body)
        self.leases.lease["metadata"]["resourceVersion"] = str(version)
        return copy.deepcopy(self.leases.lease)

    async def _answer(self) -> None:
        await asyncio.sleep(0)
        if self.identity in self.leases.down:
            raise Unreachable("no answer")


class Replica:
    """Works while it leads; `works` is what nobody else may be at the same time."""

    def __init__(self, leases: Leases, identity: str) -> None:
        self.works, self.turns = False, 0
        self.elector = Elector(leases.client(identity), "ns", "lease", identity, TERMS)
        self.task = asyncio.create_task(self.elector.run(self._begin, self._end))

    def _begin(self) -> None:
        self.works, self.turns = True, self.turns + 1

    async def _end(self) -> None:
        await asyncio.sleep(0.05)
        self.works = False

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.elector.close()

    def die(self) -> None:
        """As by kill -9: nothing is released."""
        self.task.cancel()
        self.works = False


async def test_one_of_two_leads_and_a_clean_stop_hands_over_at_once() -> None:
    leases = Leases()
    a, b = Replica(leases, "a"), Replica(leases, "b")
    await until(lambda: a.works or b.works)
    first, second = (a, b) if a.works else (b, a)
    await asyncio.sleep(2 * TERMS.lease)
    assert (first.works, second.works) == (True, False), "it renews"
    await first.stop()
    assert leases.holder == ""
    assert await until(lambda: second.works) < TERMS.lease / 2
    await second.stop()


@pytest.mark.parametrize("skew", [-86_400.0, 86_400.0])
async def test_a_dead_leader_is_followed_after_its_lease_whatever_the_clocks_show(
    skew: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases = Leases()
    a = Replica(leases, "a")
    await until(lambda: a.works)
    wall = time.time
    monkeypatch.setattr("time.time", lambda: wall() + skew)
    b = Replica(leases, "b")
    await asyncio.sleep(1.5 * TERMS.lease)
    assert not b.works
    a.die()
    assert TERMS.lease / 2 < await until(lambda: b.works) < TERMS.lease + 1
    assert leases.lease is not None
    assert leases.lease["spec"]["leaseTransitions"] == 1
    await b.stop()


async def test_a_leader_that_cannot_renew_has_stopped_before_another_begins() -> None:
    leases = Leases()
    a = Replica(leases, "a")
    await until(lambda: a.works)
    b = Replica(leases, "b")
    await asyncio.sleep(2 * TERMS.poll)
    leases.down.add("a")
    await until(lambda: not a.works)
    assert not b.works
    await until(lambda: b.works)
    assert not a.elector.leads
    leases.down.clear()
    await asyncio.sleep(TERMS.lease)
    assert not a.works, "it is a standby now"
    b.die()
    await until(lambda: a.works)
    assert a.turns == 2
    await a.stop()


async def test_a_process_that_was_frozen_knows_that_it_leads_no_longer() -> None:
    leases = Leases()
    a = Replica(leases, "a")
    await until(lambda: a.works)
    time.sleep(TERMS.lease + 0.05)  # noqa: ASYNC251
    assert not a.elector.leads, "before anything else of it has run"
    await a.stop()


async def test_a_lease_that_is_deleted_is_created_again() -> None:
    leases = Leases()
    a = Replica(leases, "a")
    await until(lambda: a.works)
    leases.lease = None
    await until(lambda: leases.holder == "a")
    assert a.turns == 1
    await a.stop()
