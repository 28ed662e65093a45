"""How fast: from a job's creation to its child Job, alone and in a burst; and what the API server pays for each write."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.operator import ours, rival
from benchmarks.operator.control import (
    DEFAULT_LIMITS,
    NAMESPACE,
    Api,
    Object,
    at_once,
    cluster,
    cpu_seconds,
    memory_mb,
    pid_of,
    settled,
)
from benchmarks.operator.specimen import Specimen
from localcluster import toolchain
from localcluster.gobuild import KUBE
from localcluster.spec import Spec

CHILD_JOBS = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
IDLE_JOBS = 50
_IDLE_PAUSE_S = 0.25


@dataclass
class Pace:
    """One contender's figures; times in seconds, memory in MB."""

    burst: float
    creates: float
    """Time of the creates alone, which overlap with what they cause."""
    idle: list[float] = field(default_factory=list)
    idle_memory: float = 0.0
    burst_memory: float = 0.0
    cpu: float = 0.0
    """CPU time of the contender's processes during the burst."""

    def percentile(self, share: float) -> float:
        return sorted(self.idle)[min(len(self.idle) - 1, round(share * len(self.idle)))]


class Children:
    """The child Jobs that a watch has shown, with the time of each."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.seen: dict[str, float] = {}
        """By the name of the job: everything before the child's own suffix."""
        self._news = asyncio.Event()

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[Children]:
        task = asyncio.create_task(self._watch())
        await asyncio.sleep(0.5)
        try:
            yield self
        finally:
            task.cancel()

    async def _watch(self) -> None:
        async for event in self._api.watch(CHILD_JOBS):
            if event["type"] == "ADDED":
                self.seen.setdefault(event["object"]["metadata"]["name"].split("-")[0], time.monotonic())
                self._news.set()

    async def have(self, names: list[str], seconds: float) -> None:
        async with asyncio.timeout(seconds):
            while not all(name in self.seen for name in names):
                self._news.clear()
                await self._news.wait()


async def _measure(api: Api, submit: Callable[[str], Awaitable[object]], pids: list[int], count: int) -> Pace:
    """`submit` creates the job of a name; `pids` are the contender's processes."""
    pace = Pace(0.0, 0.0)
    for pid in pids:
        await settled(pid, 30)
    pace.idle_memory = sum(memory_mb(pid) for pid in pids)
    async with Children(api).watching() as children:
        for number in range(IDLE_JOBS):
            name = f"i{number}"
            began = time.monotonic()
            await submit(name)
            await children.have([name], 30)
            pace.idle.append(children.seen[name] - began)
            await asyncio.sleep(_IDLE_PAUSE_S)
        used = sum(cpu_seconds(pid) for pid in pids)
        names = [f"b{number}" for number in range(count)]
        began = time.monotonic()
        await at_once(count, lambda number: submit(names[number]))
        pace.creates = time.monotonic() - began
        await children.have(names, 300)
        pace.burst = max(children.seen[name] for name in names) - began
    for pid in pids:
        await settled(pid, 30)
    pace.cpu = sum(cpu_seconds(pid) for pid in pids) - used
    pace.burst_memory = sum(memory_mb(pid) for pid in pids)
    return pace


async def of_ours(name: str, count: int) -> Pace:
    with cluster(name, kwok=2, flags=DEFAULT_LIMITS) as spec:
        api, operator = Api(spec.paths.kubeconfig), None
        try:
            await api.namespace()
            await ours.install(api)
            await ours.claims(api)
            operator = ours.Operator(spec.paths.kubeconfig)
            await operator.ready()
            return await _measure(api, lambda name: api.post(ours.JOBS, ours.manifest(name)), [operator.pid], count)
        finally:
            if operator is not None:
                operator.stop()
            await api.close()


async def of_rival(name: str, count: int) -> Pace:
    with cluster(name, kwok=2, flags=DEFAULT_LIMITS) as spec:
        api, managers = Api(spec.paths.kubeconfig), None
        try:
            await api.namespace()
            await rival.install(api)
            managers = rival.Rival(spec)
            await managers.ready()
            return await _measure(
                api, lambda name: api.post(rival.TRAINJOBS, rival.manifest(name)), managers.pids, count
            )
        finally:
            if managers is not None:
                managers.stop()
            await api.close()


async def of_bare_client(name: str, count: int, specimen: Specimen) -> Pace:
    """The same writes from 32 connections: what an operator that costs nothing would take."""
    with cluster(name, kwok=2, flags=DEFAULT_LIMITS) as spec:
        api = Api(spec.paths.kubeconfig)
        try:
            await api.namespace()
            await ours.install(api)
            await ours.claims(api)

            async def submit(job: str) -> None:
                made = await api.post(ours.JOBS, ours.manifest(job))
                for request in specimen.up_to_child(job, made["metadata"]["uid"], made["metadata"]["resourceVersion"]):
                    await api.call(request.method, request.path, request.body, request.content_type)

            return await _measure(api, submit, [], count)
        finally:
            await api.close()


@dataclass(frozen=True)
class Charge:
    """API server CPU per request, in milliseconds."""

    create: float
    status: float


async def charges(name: str, specimen: Specimen, count: int, profile: bool) -> tuple[Charge, Charge]:
    """Ours and the rival's, on an API server that does nothing else."""
    flags = {"kube-apiserver": ["--profiling=true"]} if profile else {}
    with cluster(name, "api", flags=flags) as spec:
        api = Api(spec.paths.kubeconfig)
        try:
            await api.apply(
                f"/api/v1/namespaces/{NAMESPACE}",
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
            )
            await ours.install(api)
            await rival.install(api)
            await _charge(api, spec, rival.TRAINJOBS, rival.manifest, _rival_status, 50, False, "warm")
            await _charge(api, spec, ours.JOBS, ours.manifest, specimen.progress, 50, False, "warmed")
            theirs = await _charge(api, spec, rival.TRAINJOBS, rival.manifest, _rival_status, count, profile, "t")
            mine = await _charge(api, spec, ours.JOBS, ours.manifest, specimen.progress, count, profile, "f")
            return mine, theirs
        finally:
            await api.close()


async def _charge(
    api: Api,
    spec: Spec,
    path: str,
    manifest: Callable[[str], Object],
    status: Callable[[int], Object],
    count: int,
    profile: bool,
    prefix: str,
) -> Charge:
    server = pid_of(spec, "kube-apiserver")

    async def cost(what: str, work: Callable[[int], Any]) -> float:
        if profile:
            with _profiled(spec, what):
                await at_once(count, work)
            return 0.0
        before = cpu_seconds(server)
        await at_once(count, work)
        await asyncio.sleep(1)
        return (cpu_seconds(server) - before) * 1000 / count

    create = await cost(f"{prefix}: create", lambda number: api.post(path, manifest(f"{prefix}{number}")))
    # The first status of an object is larger than its later ones.
    await at_once(count, lambda number: api.merge(f"{path}/{prefix}{number}/status", {"status": status(0)}))
    change = await cost(
        f"{prefix}: status", lambda number: api.merge(f"{path}/{prefix}{number}/status", {"status": status(1)})
    )
    return Charge(create, change)


def _rival_status(number: int) -> Object:
    """A TrainJob's status while it runs, as its controller patches it."""
    return {
        "conditions": [
            {
                "type": "Suspended", "status": "False", "reason": "Resumed", "message": "TrainJob is resumed",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
        ],
        "jobsStatus": [
            {"name": "node", "ready": number, "succeeded": 0, "failed": 0, "active": 1, "suspended": 0},
        ],
    }  # fmt: skip


@contextlib.contextmanager
def _profiled(spec: Spec, what: str) -> Any:
    """Print where the API server's CPU time goes meanwhile."""
    file = Path(f"benchmarks/out/{what.replace(': ', '-')}.pprof")
    file.parent.mkdir(parents=True, exist_ok=True)
    # curl, since the answer comes at the end and this process is busy.
    fetch = subprocess.Popen(
        [
            "curl", "-sS", "--cacert", str(spec.pki.ca.certificate), "-o", str(file),
            "-H", f"Authorization: Bearer {spec.pki.token('admin')}",
            f"{spec.server}/debug/pprof/profile?seconds=15",
        ]
    )  # fmt: skip
    try:
        yield
    finally:
        fetch.wait(60)
    go = toolchain.go(KUBE.needed_go)
    done = subprocess.run(
        [str(go), "tool", "pprof", "-top", "-cum", "-nodecount=45", str(file)],
        env=toolchain.environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False,
    )  # fmt: skip
    print(f"\n{what} ({file})\n{done.stdout}", flush=True)
