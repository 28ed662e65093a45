"""What must hold whatever happens. Watched on the API server itself, not through the operator."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from dataclasses import dataclass, field

import aiohttp
from finetune_api.contract import LABEL_ATTEMPT, LABEL_RUN, LABEL_STAGE, LABEL_UID, MANAGED_BY, MANAGED_BY_LABEL
from finetune_operator.domain.names import run_of

from benchmarks.operator import ours
from benchmarks.operator.control import NAMESPACE, Api, Object, Refused

SELECTOR = f"{MANAGED_BY_LABEL}={MANAGED_BY}"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
CHILD_JOBS = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
TERMINAL = frozenset({"Completed", "Failed"})
_CHILDREN = (CHILD_JOBS, PODS, f"/api/v1/namespaces/{NAMESPACE}/configmaps", f"/api/v1/namespaces/{NAMESPACE}/services")


@dataclass
class Known:
    """A FineTuneJob as last seen."""

    name: str
    uid: str
    body: Object
    first_seen: float
    ended: dict[str, str] = field(default_factory=dict)
    """run token -> terminal phase"""
    deleted: bool = False

    @property
    def token(self) -> str:
        return str(self.body["spec"].get("runToken") or "")

    @property
    def status(self) -> Object:
        return self.body.get("status") or {}

    @property
    def phase(self) -> str:
        return str(self.status.get("phase") or "")


@dataclass
class Observer:
    """Follows jobs and pods; every violation is one sentence, kept once."""

    api: Api
    began: float = field(default_factory=time.monotonic)
    jobs: dict[str, Known] = field(default_factory=dict)
    pods: dict[str, Object] = field(default_factory=dict)
    published: dict[tuple[str, str], int] = field(default_factory=dict)
    """(uid, run) -> the last attempt whose publish pod succeeded"""
    violations: dict[str, float] = field(default_factory=dict)
    _gangs: dict[tuple[str, str], dict[str, set[str]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(set))
    )

    def violated(self, text: str) -> None:
        if text not in self.violations:
            at = time.monotonic() - self.began
            self.violations[text] = at
            print(f"VIOLATED after {at:.0f} s: {text}", flush=True)

    async def follow(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(ours.JOBS, self.take_job, {}))
            group.create_task(self._follow(PODS, self.take_pod, {"labelSelector": SELECTOR}))

    async def _follow(self, path: str, take: object, query: dict[str, str]) -> None:
        assert callable(take)
        while True:
            with contextlib.suppress(aiohttp.ClientError, Refused, TimeoutError, OSError):
                for found in await self.api.items(path, **query):
                    take("ADDED", found)
                async for event in self.api.watch(path, "application/json", **query):
                    if event["type"] in ("ADDED", "MODIFIED", "DELETED"):
                        take(event["type"], event["object"])
            await asyncio.sleep(0.2)

    def take_job(self, kind: str, body: Object) -> None:
        uid = body["metadata"]["uid"]
        known = self.jobs.get(uid)
        if known is None:
            known = self.jobs[uid] = Known(body["metadata"]["name"], uid, body, time.monotonic())
        known.deleted = known.deleted or kind == "DELETED"
        known.body = body
        if known.deleted:
            return
        if known.phase in TERMINAL and self._observed(known):
            before = known.ended.setdefault(known.token, known.phase)
            if before != known.phase:
                self.violated(f"{known.name}: terminal phase {before} became {known.phase}")
        elif known.token in known.ended and self._observed(known):
            self.violated(f"{known.name}: terminal phase {known.ended[known.token]} became {known.phase or 'empty'}")
        self._attempts(known)

    @staticmethod
    def _observed(known: Known) -> bool:
        """Whether the status speaks of the spec as it is: a changed runToken is not in it at once."""
        return bool(known.status.get("observedGeneration") == known.body["metadata"]["generation"])

    def _attempts(self, known: Known) -> None:
        entries = known.status.get("attempts") or []
        names = [entry.get("job") or f"{entry.get('stage')}-{entry.get('number')}" for entry in entries]
        for name in {name for name in names if names.count(name) > 1}:
            self.violated(f"{known.name}: attempt {name} is recorded {names.count(name)} times")
        done: dict[str, int] = defaultdict(int)
        for name, entry in zip(names, entries, strict=True):
            if entry.get("outcome") == "Succeeded":
                done[name.rpartition("-")[0]] += 1
        for stage, count in done.items():
            if count > 1:
                self.violated(f"{known.name}: stage {stage} succeeded {count} times")

    def take_pod(self, kind: str, pod: Object) -> None:
        labels = pod["metadata"].get("labels") or {}
        uid, run, attempt = (labels.get(name, "") for name in (LABEL_UID, LABEL_RUN, LABEL_ATTEMPT))
        name, phase = pod["metadata"]["name"], pod["status"].get("phase")
        if kind == "DELETED":
            self.pods.pop(name, None)
        else:
            self.pods[name] = pod
        stage = labels.get(LABEL_STAGE)
        if stage == "publish" and phase == "Succeeded":
            self.published[(uid, run)] = max(int(attempt), self.published.get((uid, run), 0))
        if stage != "train":
            return
        gangs = self._gangs[(uid, run)]
        active = kind != "DELETED" and bool(pod["spec"].get("nodeName")) and phase in ("Pending", "Running")
        if active:
            gangs[attempt].add(pod["metadata"]["uid"])
        else:
            gangs[attempt].discard(pod["metadata"]["uid"])
        side_by_side = sorted(number for number, pods in gangs.items() if pods)
        if len(side_by_side) > 1:
            job = self.jobs[uid].name if uid in self.jobs else uid
            self.violated(f"{job}: the gangs of attempts {' and '.join(side_by_side)} ran at the same time")

    async def at_the_end(self, orphaned: set[str], orphaned_jobs: set[str]) -> None:
        """Check what only holds once everything is settled. Given: uids of FineTuneJobs, and names of Jobs, that were deleted
        without their children."""
        alive = {body["metadata"]["uid"]: body for body in await self.api.items(ours.JOBS)}
        for path in _CHILDREN:
            for child in await self.api.items(path, labelSelector=SELECTOR):
                uid = child["metadata"]["labels"].get(LABEL_UID)
                name = child["metadata"]["name"]
                job = child["metadata"]["labels"].get("job-name", name)
                if uid not in alive and uid not in orphaned and job not in orphaned_jobs:
                    self.violated(f"{path.rpartition('/')[2]} {name} outlived its FineTuneJob")
        for uid, body in alive.items():
            status = body.get("status") or {}
            known = self.jobs.get(uid)
            name = body["metadata"]["name"]
            if status.get("phase") not in TERMINAL and not (status.get("reason") and status.get("message")):
                self.violated(f"{name}: {status.get('phase') or 'no phase'} without a reason and a message")
            run = run_of(uid, body["spec"].get("runToken"))
            number = self.published.get((uid, run))
            if number is not None and status.get("phase") != "Completed":
                # Where the pod or its Job was deleted before its result was read, publish runs again, and a fault may end that.
                later = [a for a in status.get("attempts") or [] if a["stage"] == "publish" and a["number"] > number]
                if not later:
                    self.violated(
                        f"{name}: attempt {number} published, but is {status.get('phase')} ({status.get('reason')}): "
                        f"{status.get('attempts')}"
                    )
            seconds = float((status.get("usage") or {}).get("trainSeconds") or 0)
            if known is not None and seconds > time.monotonic() - known.first_seen + 60:
                self.violated(f"{name}: usage counts {seconds:.0f} s of training, more than it has existed")
