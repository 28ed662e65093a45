"""Thousands of jobs at rest: memory, restarts, and what refused jobs ask of the API server. And two replicas."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import signal
import time
from dataclasses import dataclass, field

from finetune_operator import settings

from benchmarks.operator import ours
from benchmarks.operator.control import NAMESPACE, Api, cluster, memory_mb, pid_of, settled, until
from benchmarks.operator.pace import Children
from benchmarks.operator.specimen import Specimen, store


@dataclass
class Rest:
    """An operator at rest with a number of jobs. Memory in MB, times in seconds."""

    memory: float
    peak: float
    ready: float
    writes_until_ready: float
    writes: float
    cpu: float


@dataclass
class Scale:
    idle: Rest
    running: Rest
    many: Rest
    api_server_memory: float = 0.0


async def at_rest(name: str, specimen: Specimen, running: int, finished: int) -> Scale:
    """An operator that is started with no job, with RUNNING ones that train, and with FINISHED ones in addition."""
    async with contextlib.AsyncExitStack() as stack:
        # Without the collector of ended pods, which would delete half of them, 20 a second, while they are measured.
        flags = {"kube-controller-manager": ["--terminated-pod-gc-threshold=0"]}
        spec = stack.enter_context(cluster(name, kwok=1, flags=flags))
        port = await stack.enter_async_context(ours.progress_server())
        api = Api(spec.paths.kubeconfig)
        stack.push_async_callback(api.close)
        await api.namespace()
        await ours.install(api)
        await ours.claims(api)

        async def measure() -> Rest:
            await _write_each_kind(api)
            operator = ours.Operator(spec.paths.kubeconfig, FINETUNE_PROGRESS_PORT=str(port))
            try:
                ready = await operator.ready(300)
                writes = await operator.writes()
                cpu = await settled(operator.pid, 60)
                return Rest(
                    memory_mb(operator.pid),
                    memory_mb(operator.pid, "VmHWM"),
                    ready,
                    writes,
                    await operator.writes(),
                    cpu,
                )
            finally:
                operator.stop()

        async def seen(count: int) -> None:
            async def all_there() -> bool:
                first = await api.get(f"{ours.FTJ}/finetunejobs", limit="1")
                if first["metadata"].get("remainingItemCount") is None:
                    return len(first["items"]) >= count
                return bool(1 + first["metadata"]["remainingItemCount"] >= count)

            await until("the API server sees the jobs", all_there, 120)
            await settled(pid_of(spec, "kube-controller-manager"), 120)

        idle = await measure()
        await store(spec, [specimen.runs.copy(f"r{number}") for number in range(running)])
        await seen(running)
        with_running = await measure()
        for start in range(0, finished, 1000):
            count = min(1000, finished - start)
            await store(spec, [specimen.done.copy(f"d{start + number}") for number in range(count)])
        await seen(running + finished)
        many = await measure()
        return Scale(idle, with_running, many, memory_mb(pid_of(spec, "kube-apiserver")))


async def _write_each_kind(api: Api) -> None:
    """As happens all the time where jobs run. A kind without a write since etcd's last compaction, 5 minutes ago, is read from
    etcd and decoded again for each page of a list but the first."""
    for path in (ours.JOBS, f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs", f"/api/v1/namespaces/{NAMESPACE}/pods"):
        for found in (await api.get(path, limit="1"))["items"]:
            note = {"metadata": {"annotations": {"benchmark": str(time.time())}}}
            await api.merge(f"{path}/{found['metadata']['name']}", note)


@dataclass
class Refusals:
    """Requests a second of an operator all of whose jobs are refused."""

    after: list[tuple[float, float]] = field(default_factory=list)
    """(minutes since the last create, requests a second in the half minute before)."""


async def refused(name: str, count: int, minutes: float) -> Refusals:
    """COUNT jobs in a namespace whose quota admits no Job."""
    with cluster(name) as spec:
        api, operator = Api(spec.paths.kubeconfig), None
        try:
            await api.namespace()
            await ours.install(api)
            quota = {"metadata": {"name": "none"}, "spec": {"hard": {"count/jobs.batch": "0"}}}
            await api.post(f"/api/v1/namespaces/{NAMESPACE}/resourcequotas", quota)
            operator = ours.Operator(spec.paths.kubeconfig)
            await operator.ready()

            async def enforced() -> bool:
                found = await api.get(f"/api/v1/namespaces/{NAMESPACE}/resourcequotas/none")
                return "hard" in found.get("status", {})

            await until("the quota is enforced", enforced)
            async with asyncio.TaskGroup() as group:
                for lane in range(8):
                    group.create_task(_create(api, range(lane, count, 8)))
            began, found = time.monotonic(), Refusals()
            while time.monotonic() - began < minutes * 60:
                before, at = await operator.metric("rest_client_requests_total"), time.monotonic()
                await asyncio.sleep(min(30, minutes * 60 / 4))
                after, now = await operator.metric("rest_client_requests_total"), time.monotonic()
                found.after.append(((now - began) / 60, (after - before) / (now - at)))
            return found
        finally:
            if operator is not None:
                operator.stop()
            await api.close()


async def _create(api: Api, numbers: range) -> None:
    for number in numbers:
        await api.post(ours.JOBS, ours.manifest(f"q{number}"))


LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/{ours.LEASE}"


def has_leader_election() -> bool:
    return "FINETUNE_LEADER_ELECTION" in inspect.getsource(settings)


@dataclass
class Failover:
    """Seconds from the leader's end to the child Job of a job that was created at that moment."""

    killed: float
    stopped: float
    lease: float


async def failover(name: str) -> Failover:
    """Two replicas; the one that leads is killed, then the next one is stopped."""
    with cluster(name) as spec:
        api = Api(spec.paths.kubeconfig)
        replicas: dict[str, ours.Operator] = {}
        started = 0

        def start() -> None:
            nonlocal started
            identity = f"replica-{started}"
            started += 1
            replicas[identity] = ours.Operator(spec.paths.kubeconfig, **ours.replica(identity))

        async def leader() -> tuple[ours.Operator, float] | None:
            """The replica that leads, by its own metric, and the Lease's duration."""
            for operator in replicas.values():
                if operator.process.poll() is None and await operator.metric("leader_election_master_status") >= 1:
                    return operator, float((await api.get(LEASE))["spec"]["leaseDurationSeconds"])
            return None

        async def takes_over(number: int, job: str) -> tuple[float, float]:
            for operator in list(replicas.values()):
                if operator.process.poll() is None:
                    await operator.ready()
            await until("a replica leads", leader)
            found = await leader()
            assert found is not None
            async with Children(api).watching() as children:
                began = time.monotonic()
                found[0].process.send_signal(number)
                await asyncio.to_thread(found[0].process.wait, 40)
                ended = time.monotonic() if number == signal.SIGTERM else began
                await api.post(ours.JOBS, ours.manifest(job))
                await children.have([job], 60)
                return max(0.0, children.seen[job] - ended), found[1]

        try:
            await api.namespace()
            await ours.install(api)
            for _ in range(2):
                start()
            killed, lease = await takes_over(signal.SIGKILL, "k")
            start()
            await asyncio.sleep(2)
            stopped, _ = await takes_over(signal.SIGTERM, "s")
            return Failover(killed, stopped, lease)
        finally:
            for operator in replicas.values():
                operator.stop()
            await api.close()
