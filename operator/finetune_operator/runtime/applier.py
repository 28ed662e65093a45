"""Carrying out a plan: create, patch and delete children, at once, and new Jobs after everything else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any

from finetune_operator.domain.names import attempt_name
from finetune_operator.domain.observed import ClaimView, EventView, NodeView, Read, Refusal, controller_uid
from finetune_operator.domain.plan_builder import Delete, Patch, Plan
from finetune_operator.domain.times import seconds_of
from finetune_operator.runtime.cache import Cache, HeldJob
from finetune_operator.runtime.client import Client
from finetune_operator.runtime.errors import ApiError
from finetune_operator.runtime.queue import Key
from finetune_operator.runtime.resources import BY_KIND, CLAIM, EVENT, JOB, NODE, POD
from finetune_operator.telemetry import metrics

logger = logging.getLogger(__name__)

Object = dict[str, Any]
Done = set[tuple[str, str, str]]
"""(verb, kind, name) of what was tried already: nothing is tried twice in one look."""

_RECENT_EVENTS = 20


class Applier:
    """Put what the API server answers into the cache at once, so that the next reconcile knows it."""

    def __init__(self, client: Client, cache: Cache) -> None:
        self._client, self._cache = client, cache

    async def carry_out(self, key: Key, held: HeldJob, plan: Plan, done: Done) -> bool:
        """Returns whether anything was tried. A refusal is remembered and shown; raises the first error that says nothing about
        the request itself (no answer, too many requests)."""
        bodies = [b for b in plan.create if _first(done, "create", b["kind"], b["metadata"]["name"])]
        patches = [p for p in plan.patch if _first(done, "change", "Job", p.name)]
        deletes = [d for d in plan.delete if _first(done, "delete", "Job", d.name)]
        await _all(
            [
                *(self._patch(key, held, patch) for patch in patches),
                *(self._create(held, body) for body in bodies),
                *(self._delete(key, held, delete) for delete in deletes),
            ]
        )
        return bool(bodies or patches or deletes)

    async def read(self, key: Key, held: HeldJob, wanted: frozenset[Read]) -> None:
        """Find out what the plan asked for."""
        for read in wanted:
            match read.kind:
                case "claim":
                    held.facts.claims[read.name] = await self._claim(key, read.name)
                case "warnings":
                    held.facts.warnings[read.name] = await self._warnings(key, read.name)
                case "node":
                    held.facts.nodes[read.name] = await self._node(read.name)
                case "job":
                    await self._job(key, held, read.name)
                case "pods":
                    await self._pods(key, held, read.name)
            held.facts.read(read)

    async def _node(self, name: str) -> NodeView:
        try:
            body = await self._client.get(NODE, None, name)
        except ApiError as error:
            if error.code == 403:  # an installation for some namespaces has no right to nodes
                return NodeView(name, ready=None)
            raise
        return NodeView(name, ready=False) if body is None else NodeView.of(body)

    async def _job(self, key: Key, held: HeldJob, name: str) -> None:
        """Whether a Job is there that no watch shows."""
        body = await self._client.get(JOB, key[0], name)
        ours = body is not None and controller_uid(body) == held.uid
        if body is not None and ours and attempt_name(body["metadata"].get("labels") or {}) == name:
            self._cache.observe("Job", body)
        else:
            held.facts.jobs_read[name] = ours

    async def _pods(self, key: Key, held: HeldJob, job: str) -> None:
        """The pods of an attempt, whatever the watch has shown."""
        query = {"labelSelector": f"batch.kubernetes.io/job-name={job}"}
        async for page in self._client.pages(POD, key[0], query=query):
            for body in page:
                self._cache.observe("Pod", body)
        held.facts.pods_read.add(job)

    async def _create(self, held: HeldJob, body: Object) -> None:
        kind, name = body["kind"], body["metadata"]["name"]
        resource = BY_KIND[kind]
        try:
            made = await self._client.create(resource, body)
        except ApiError as error:
            if error.code == 409 and error.reason == "AlreadyExists":
                await self._exists_already(held, body)
            else:
                self._refused(held, Refusal(kind, name, error.code, error.message), error)
            return
        logger.info("created", extra={"kind": kind, "child": name})
        was_refused = held.facts.done(kind, name) if kind == "Job" else held.facts.exists(kind, name)
        if was_refused:
            self._cache.on_freed(held.key[0])  # what let this one pass may let the next one
        if kind == "Job":
            self._cache.observe("Job", made)
            self._measure(held, made)

    def _refused(self, held: HeldJob, refusal: Refusal, error: ApiError) -> None:
        """Remember an answer that concerns this request; raise one that concerns the client or the whole server."""
        if error.code in (401, 409, 429):
            raise error
        held.facts.refuse(refusal)
        logger.warning(
            "refused", extra={"verb": refusal.verb, "kind": refusal.kind, "child": refusal.name, "error": str(error)}
        )

    def _measure(self, held: HeldJob, made: Object) -> None:
        if not held.status.get("attempts"):
            asked, done = (seconds_of(body["metadata"]["creationTimestamp"]) for body in (held.body, made))
            metrics.child_created_seconds.observe(max(0.0, (done or 0.0) - (asked or 0.0)))

    async def _exists_already(self, held: HeldJob, body: Object) -> None:
        """Ours from before a crash or a lost answer, or somebody else's: only the controller's uid says which."""
        kind, name, namespace = body["kind"], body["metadata"]["name"], body["metadata"]["namespace"]
        there = await self._client.get(BY_KIND[kind], namespace, name)
        if there is None:
            return  # gone again; the next reconcile creates it
        # Version 0.1 let the FineTuneJob own the Service, not its Job.
        if controller_uid(there) not in (controller_uid(body), held.uid):
            held.facts.refuse(Refusal(kind, name, 409, "it belongs to something else"))
        elif kind == "Job":
            held.facts.done(kind, name)
            self._cache.observe("Job", there)
        else:
            held.facts.exists(kind, name)

    async def _patch(self, key: Key, held: HeldJob, patch: Patch) -> None:
        """The uid makes it a conflict when another Job has the name by now."""
        body = patch.body | {"metadata": patch.body["metadata"] | {"uid": patch.uid}}
        try:
            self._cache.observe("Job", await self._client.merge(JOB, key[0], patch.name, body))
        except ApiError as error:
            if error.code != 404:  # gone: the watch reports it
                self._refused(held, Refusal("Job", patch.name, error.code, error.message, "change"), error)
            return
        held.facts.done("Job", patch.name)
        logger.info("patched", extra={"kind": "Job", "child": patch.name, "change": sorted(patch.body)})

    async def _delete(self, key: Key, held: HeldJob, delete: Delete) -> None:
        try:
            answer = await self._client.delete(JOB, key[0], delete.name, delete.uid)
        except ApiError as error:
            self._refused(held, Refusal("Job", delete.name, error.code, error.message, "delete"), error)
            return
        held.facts.done("Job", delete.name)
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

    async def _warnings(self, key: Key, name: str) -> tuple[EventView, ...] | None:
        """Events about an object, the newest first; None when we may not read events. The scheduler's are left out: a pod's
        condition has the same, and is removed once it has a node."""
        # By kind too: a gang's Service has the same name as its Job.
        kind = "Pod" if self._cache.holds("Pod", (key[0], name)) else "Job"
        query = {"fieldSelector": f"regarding.kind={kind},regarding.name={name},reason!=FailedScheduling"}
        found: list[EventView] = []
        try:
            async for page in self._client.pages(EVENT, key[0], query=query):
                found += [EventView.of(event) for event in page]
        except ApiError as error:
            if error.code == 403:
                return None
            raise
        return tuple(sorted(found, key=lambda event: event.seen, reverse=True)[:_RECENT_EVENTS])


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
