"""One job: look, plan, act, look again until nothing is left to do; then one status write, then the events.

Nothing here decides anything. When the process dies between any two writes, the next look finds what is there and goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from finetune_operator.domain.attempts.completion import finished
from finetune_operator.domain.plan import plan as draw_up
from finetune_operator.domain.plan_builder import Config, Plan
from finetune_operator.domain.status.write_policy import can_wait
from finetune_operator.runtime.applier import Applier, Done
from finetune_operator.runtime.cache import Cache, HeldJob
from finetune_operator.runtime.client import Client
from finetune_operator.runtime.errors import ApiError, Conflict
from finetune_operator.runtime.job_metrics import measure
from finetune_operator.runtime.mergepatch import difference
from finetune_operator.runtime.poller import Poller
from finetune_operator.runtime.queue import Key
from finetune_operator.runtime.recorder import Recorder
from finetune_operator.runtime.resources import FINETUNEJOB

logger = logging.getLogger(__name__)

_ROUNDS = 12
"""A look that does not settle within so many rounds is left for later: a loop must not hold a worker."""


class Reconciler:
    """`clock` gives seconds since 1970."""

    def __init__(
        self,
        client: Client,
        cache: Cache,
        recorder: Recorder,
        poller: Poller,
        config: Config,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client, self._cache, self._recorder, self._poller = client, cache, recorder, poller
        self._config, self._clock = config, clock
        self._actions = Applier(client, cache)

    async def reconcile(self, key: Key) -> float | None:
        """Bring one job where it should be. Returns the seconds until time alone may change something.

        Raises ApiError, Unreachable and Conflict; all of them mean: look again.
        """
        done: Done = set()
        for _ in range(_ROUNDS):
            held = self._cache.finetunejob(key)
            seen = self._cache.snapshot(key)
            if held is None or seen is None:
                self._poller.follow(key, None)
                return None
            now = self._clock()
            held.facts.drop_stale()
            plan = draw_up(seen, now, self._config)
            if plan.status is None:
                self._poller.follow(key, None)
                return None
            unread = frozenset(
                read for read in plan.reads if read.name not in held.facts.claims.keys() | held.facts.warnings.keys()
            )
            if unread:
                await self._actions.read(key, held, unread)
                continue
            if plan.status_first and await self._write_status(key, held, plan, now):
                continue
            if await self._actions.carry_out(key, held, plan, done):
                continue
            if await self._write_status(key, held, plan, now) and finished(plan.status):
                continue  # what follows an end is decided only when the end is on record
            self._cache.looked_at(seen)
            self._poller.follow(key, plan.poll)
            return plan.requeue_after
        logger.warning("a look did not settle", extra={"rounds": _ROUNDS})
        return 1.0

    async def _write_status(self, key: Key, held: HeldJob, plan: Plan, now: float) -> bool:
        """Write what differs, if anything does, and only over what we have seen: another version is a conflict."""
        assert plan.status is not None
        change = difference(held.status, plan.status.wire())
        if not change or can_wait(held.status, change):
            return False
        metadata = held.body["metadata"]
        body = {"metadata": {"resourceVersion": metadata["resourceVersion"]}, "status": change}
        try:
            answer = await self._client.merge(FINETUNEJOB, key[0], key[1], body, subresource="status")
        except ApiError as error:
            if error.code == 404:
                self._cache.forget("FineTuneJob", *key, held.uid)
                return True
            if error.code == 409:
                await self._refresh(key, held)
                raise Conflict(error.message) from error
            raise
        before = held.status
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
        """The watch is behind: ask."""
        body = await self._client.get(FINETUNEJOB, *key)
        if body is None or body["metadata"]["uid"] != held.uid:
            self._cache.forget("FineTuneJob", *key, held.uid)
        if body is not None:
            self._cache.observe("FineTuneJob", body)
