"""Reconcile one job: snapshot, plan, apply, until nothing is left to do; then one status write, then the events.

Nothing here decides anything. When the process dies between any two writes, the next reconcile finds what is there.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from finetune_operator.domain.attempts.completion import finished
from finetune_operator.domain.plan import plan as make_plan
from finetune_operator.domain.plan_builder import Config, Event, Plan
from finetune_operator.domain.reasons import Reason
from finetune_operator.domain.status.write_policy import can_wait
from finetune_operator.runtime.applier import Applier, Done
from finetune_operator.runtime.cache import Cache, HeldJob
from finetune_operator.runtime.client import Client
from finetune_operator.runtime.errors import ApiError, Conflict, Deferred, Unreachable
from finetune_operator.runtime.job_metrics import measure
from finetune_operator.runtime.mergepatch import difference
from finetune_operator.runtime.poller import Poller
from finetune_operator.runtime.queue import Key
from finetune_operator.runtime.recorder import Recorder
from finetune_operator.runtime.resources import FINETUNEJOB
from finetune_operator.runtime.write_budget import only_texts

logger = logging.getLogger(__name__)

_ROUNDS = 12
"""A reconcile that does not settle within so many rounds is left for later: a loop must not hold a worker."""


@dataclass(frozen=True, slots=True)
class Requeue:
    """When to reconcile a job again although nothing happened: after a known time, or with a backoff for a reason."""

    after: float | None = None
    retry: str | None = None
    unfinished: bool = False
    """Its children exist; its status can wait for other jobs' children."""


class Reconciler:
    """`clock` gives seconds since 1970, by the API server."""

    def __init__(
        self,
        client: Client,
        cache: Cache,
        recorder: Recorder,
        poller: Poller,
        config: Config,
        clock: Callable[[], float],
        new_jobs_wait: Callable[[], bool] = lambda: False,
    ) -> None:
        self._client, self._cache, self._recorder, self._poller = client, cache, recorder, poller
        self._config, self._clock, self._new_jobs_wait = config, clock, new_jobs_wait
        self._applier = Applier(client, cache)

    async def reconcile(self, key: Key) -> Requeue:
        """Bring one job where it should be, and say when to come back.

        Raises ApiError, Unreachable, Conflict and Deferred; all of them mean: reconcile again.
        """
        done: Done = set()
        for _ in range(_ROUNDS):
            held = self._cache.finetunejob(key)
            observed = self._cache.snapshot(key)
            if held is None or observed is None:
                self._poller.follow(key, None)
                return Requeue()
            now = self._clock()
            held.facts.drop_stale()
            plan = make_plan(observed, now, self._config)
            unread = frozenset(read for read in plan.reads if not held.facts.has_read(read))
            if unread:
                await self._applier.read(key, held, unread)
                continue
            if plan.status is None:
                await self._applier.carry_out(key, held, plan, done)
                self._poller.follow(key, None)
                return Requeue()
            if plan.status_first and await self._write_status(key, held, plan, now):
                continue
            try:
                acted = await self._applier.carry_out(key, held, plan, done)
            except (ApiError, Unreachable):
                # What is known is shown, whatever became of the children.
                with contextlib.suppress(Deferred):
                    await self._write_status(key, held, plan, now)
                raise
            if acted:
                if held.phase is None and self._new_jobs_wait():
                    return Requeue(unfinished=True)
                continue
            if await self._write_status(key, held, plan, now) and finished(plan.status):
                continue  # what follows an end is decided only when the end is recorded
            running = [attempt.job for attempt in plan.status.attempts or () if attempt.outcome == "Running"]
            self._cache.looked_at(observed, running)
            self._poller.follow(key, plan.poll)
            return Requeue(plan.requeue_after, plan.retry)
        logger.warning("the plan did not settle", extra={"rounds": _ROUNDS})
        return Requeue(1.0)

    async def _write_status(self, key: Key, held: HeldJob, plan: Plan, now: float) -> bool:
        """Write what differs, if anything does, over the version that was observed: another one is a conflict."""
        assert plan.status is not None
        before = held.status
        after = plan.status.wire() | {name: before[name] for name in held.unreadable if name in before}
        change = difference(before, after)
        if not change or can_wait(before, change, plan.just_started, plan.just_ended):
            return False
        if only_texts(before, change) and (wait := self._poller.budget.delay(time.monotonic())):
            raise Deferred(wait)
        metadata = held.body["metadata"]
        body = {"metadata": {"resourceVersion": metadata["resourceVersion"]}, "status": change}
        try:
            answer = await self._client.merge(FINETUNEJOB, key[0], key[1], body, subresource="status")
        except ApiError as error:
            if error.code in (404, 409):  # gone, or newer than what we know: the API server has the last word
                await self._refresh(key, held)
                raise Conflict(error.message) from error
            if error.code == 403:  # no status can show it
                text = (
                    f"The operator may not write the job's status: {error.message}. Compare its roles with the chart's"
                )
                self._recorder.say(metadata, Event("Warning", Reason.NOT_ALLOWED, "Wait", text), now)
            raise
        self._cache.observe("FineTuneJob", answer)
        measure(before, plan.status, now)
        logger.info(
            "status",
            extra={"phase": plan.status.phase, "reason": plan.status.reason, "changed": sorted(change)},
        )
        for note in plan.events:
            self._recorder.say(metadata, note, now)
        return True

    async def _refresh(self, key: Key, held: HeldJob) -> None:
        """Read what the watch has not shown yet."""
        body = await self._client.get(FINETUNEJOB, *key)
        if body is None or body["metadata"]["uid"] != held.uid:
            self._cache.forget("FineTuneJob", *key, held.uid)
        if body is not None:
            self._cache.observe("FineTuneJob", body)
