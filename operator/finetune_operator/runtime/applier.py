"""Carrying out a plan: create, patch and delete children, at once, and new Jobs after everything else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any

from finetune_operator.domain.observed import ClaimView, Read, Refusal, controller_uid
from finetune_operator.domain.plan_builder import Delete, Patch, Plan
from finetune_operator.domain.times import seconds_of
from finetune_operator.runtime.cache import Cache, HeldJob
from finetune_operator.runtime.client import Client
from finetune_operator.runtime.errors import ApiError
from finetune_operator.runtime.queue import Key
from finetune_operator.runtime.resources import BY_KIND, CLAIM, EVENT, JOB
from finetune_operator.telemetry import metrics

logger = logging.getLogger(__name__)

Object = dict[str, Any]
Done = set[tuple[str, str, str]]
"""(verb, kind, name) of what was tried already: nothing is tried twice in one look."""

_RECENT_WARNINGS = 5


class Applier:
    """What the API server answers goes into the cache at once, so that the next look knows it."""

    def __init__(self, client: Client, cache: Cache) -> None:
        self._client, self._cache = client, cache

    async def carry_out(self, key: Key, held: HeldJob, plan: Plan, done: Done) -> bool:
        """Returns whether anything was done. Raises the first error that a later look may not meet."""
        bodies = [b for b in plan.create if _first(done, "create", b["kind"], b["metadata"]["name"])]
        patches = [p for p in plan.patch if _first(done, "patch", "Job", p.name)]
        deletes = [d for d in plan.delete if _first(done, "delete", d.kind, d.name)]
        await _all(
            [
                *(self._patch(key, patch) for patch in patches),
                *(self._create(held, body, _makes_job(plan, body)) for body in bodies if body["kind"] != "Job"),
                *(self._delete(key, held, delete) for delete in deletes),
            ]
        )
        # Jobs last: whenever there is one, what its pods are told is what it was made from.
        await _all([self._create(held, body, True) for body in bodies if body["kind"] == "Job"])
        return bool(bodies or patches or deletes)

    async def read(self, key: Key, held: HeldJob, wanted: frozenset[Read]) -> None:
        """Find out what the plan asked for."""
        for read in wanted:
            if read.kind == "claim":
                held.facts.claims[read.name] = await self._claim(key, read.name)
            else:
                held.facts.warnings[read.name] = await self._warnings(key, read.name)
            held.facts.read(read.name)

    async def _create(self, held: HeldJob, body: Object, for_new_job: bool) -> None:
        kind, name = body["kind"], body["metadata"]["name"]
        resource = BY_KIND[kind]
        try:
            made = await self._client.create(resource, body)
        except ApiError as error:
            if error.code == 409 and error.reason == "AlreadyExists":
                await self._exists_already(held, body, for_new_job)
            elif error.code in (400, 403, 422) or (error.code == 404 and kind != "Job"):
                held.facts.refuse(Refusal(kind, name, error.code, error.message))
            else:
                raise
            return
        logger.info("created", extra={"kind": kind, "child": name})
        held.facts.exists(kind, name)
        if kind == "Job":
            self._cache.observe("Job", made)
            self._measure(held, made)

    def _measure(self, held: HeldJob, made: Object) -> None:
        if not held.status.get("attempts"):
            asked, done = (seconds_of(body["metadata"]["creationTimestamp"]) for body in (held.body, made))
            metrics.child_created_seconds.observe(max(0.0, (done or 0.0) - (asked or 0.0)))

    async def _exists_already(self, held: HeldJob, body: Object, for_new_job: bool) -> None:
        """Ours from before a crash or a lost answer, or somebody else's: only the controller's uid says which."""
        kind, name, namespace = body["kind"], body["metadata"]["name"], body["metadata"]["namespace"]
        there = await self._client.get(BY_KIND[kind], namespace, name)
        if there is None:
            return  # gone again; the next look creates it
        if controller_uid(there) != held.uid:
            held.facts.refuse(Refusal(kind, name, 409, "it belongs to something else"))
            return
        if kind == "ConfigMap" and for_new_job and there.get("data") != body["data"]:
            # Left by an attempt that got no further, whose settings have changed since. It cannot be changed, only replaced.
            await self._client.delete(BY_KIND[kind], namespace, name, there["metadata"]["uid"])
            await self._client.create(BY_KIND[kind], body)
        held.facts.exists(kind, name)
        if kind == "Job":
            self._cache.observe("Job", there)

    async def _patch(self, key: Key, patch: Patch) -> None:
        try:
            self._cache.observe("Job", await self._client.merge(JOB, key[0], patch.name, patch.body))
        except ApiError as error:
            if error.code != 404:  # gone: the watch tells
                raise
            return
        logger.info("patched", extra={"kind": "Job", "child": patch.name, "change": sorted(patch.body)})

    async def _delete(self, key: Key, held: HeldJob, delete: Delete) -> None:
        answer = await self._client.delete(BY_KIND[delete.kind], key[0], delete.name, delete.uid)
        held.facts.gone([(delete.kind, delete.name)])
        if delete.kind != "Job" or delete.uid is None:
            return
        if answer is not None and answer.get("kind") == "Job":
            self._cache.observe("Job", answer)  # it waits for a finalizer
        else:
            self._cache.forget("Job", key[0], delete.name, delete.uid)
        logger.info("deleted", extra={"kind": "Job", "child": delete.name})

    async def _claim(self, key: Key, name: str) -> ClaimView:
        try:
            body = await self._client.get(CLAIM, key[0], name)
        except ApiError as error:
            if error.code == 403:
                return ClaimView(name, found=None)
            raise
        return ClaimView(name, found=False) if body is None else ClaimView.of(body)

    async def _warnings(self, key: Key, name: str) -> tuple[str, ...] | None:
        """Warnings about an object, the newest first; None when we may not read events. The scheduler's are left out: a pod says
        itself why it has no node, and once it has one they are past."""
        # By kind too: a job's Service has the same name as its Job.
        kind = "Pod" if self._cache.holds("Pod", (key[0], name)) else "Job"
        selector = f"regarding.kind={kind},regarding.name={name},type=Warning,reason!=FailedScheduling"
        query = {"fieldSelector": selector}
        found: list[tuple[str, str]] = []
        try:
            async for page in self._client.pages(EVENT, key[0], query=query):
                found += [(_last_seen(event), event.get("note") or "") for event in page]
        except ApiError as error:
            if error.code == 403:
                return None
            raise
        return tuple(note for _, note in sorted(found, reverse=True)[:_RECENT_WARNINGS])


async def _all(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """At once. Raises the first error, when all are done."""
    for result in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


def _first(done: Done, verb: str, kind: str, name: str) -> bool:
    if (verb, kind, name) in done:
        return False
    done.add((verb, kind, name))
    return True


def _makes_job(plan: Plan, body: Object) -> bool:
    name = body["metadata"]["name"]
    return any(other["kind"] == "Job" and other["metadata"]["name"] == name for other in plan.create)


def _last_seen(event: Object) -> str:
    series = event.get("series") or {}
    return str(
        series.get("lastObservedTime")
        or event.get("deprecatedLastTimestamp")
        or event.get("eventTime")
        or event["metadata"].get("creationTimestamp", "")
    )
