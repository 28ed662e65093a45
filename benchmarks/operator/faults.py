"""Faults that the soak run draws from. Each is one thing that happens to clusters; `draw` picks by weight, `run` does it."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp

from benchmarks.operator import ours
from benchmarks.operator.control import NAMESPACE, Api, Object, Refused
from benchmarks.operator.invariants import CHILD_JOBS, PODS, SELECTOR, TERMINAL, Known, Observer
from localcluster.addons import kwok_node

_CODES = (1, 2, 3, 4, 5, 6, 7, 126, 127, 134, 137, 139, 143, 255)
_GARBAGE = ("", "Traceback: ValueError", "\x00\x01", "{", '{"contract": 99}', "[1, 2", "x" * 3000)
_EVICTED = (
    "The node was low on resource: memory. Threshold quantity: 100Mi, available: 20Mi. ",
    "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. ",
    "The node was low on resource: ephemeral-storage. Threshold quantity: 1Gi, available: 20Mi. ",
)
_REJECTED = (
    "OutOfcpu",
    "OutOfnvidia.com/gpu",
    "NodeAffinity",
    "TopologyAffinityError",
    "UnexpectedAdmissionError",
    "Terminated",
)


@dataclass
class Faults:
    """Acts through the API server itself, as users, kubelets and nodes do."""

    api: Api
    observer: Observer
    rng: random.Random
    nodes: int
    done: Counter[str] = field(default_factory=Counter)
    orphaned: set[str] = field(default_factory=set)
    """uids of FineTuneJobs that were deleted without their children"""
    orphaned_jobs: set[str] = field(default_factory=set)
    """Names of Jobs that were: their pods and Services have no owner any more."""
    _background: set[asyncio.Task[None]] = field(default_factory=set)
    _down: set[str] = field(default_factory=set)

    def _all(self) -> dict[str, tuple[float, Callable[[], Awaitable[bool]]]]:
        return {
            "exit code": (10, self._exit),
            "out of memory": (2, self._out_of_memory),
            "pod deleted": (6, self._delete_pod),
            "pod deleted by force": (2, self._delete_pod_by_force),
            "pod evicted by the API": (4, self._evict),
            "pod evicted by the kubelet": (3, self._evicted_by_kubelet),
            "pod rejected by the kubelet": (2, self._rejected),
            "Job deleted": (3, self._delete_child),
            "ConfigMap or Service deleted": (2, self._delete_helper),
            "suspended": (5, self._suspend),
            "resumed": (6, self._resume),
            "spec edited": (4, self._edit),
            "run again": (4, self._rerun),
            "FineTuneJob deleted": (2, self._delete_job),
            "FineTuneJob deleted, children orphaned": (0.5, self._orphan_job),
            "node deleted": (0.7, self._lose_node),
            "node not ready": (0.7, self._node_not_ready),
            "quota exhausted": (0.4, self._quota),
        }

    async def one(self) -> None:
        """Do one of them, where there is something to do it to."""
        faults = self._all()
        name = self.rng.choices(list(faults), [weight for weight, _ in faults.values()])[0]
        with contextlib.suppress(Refused, aiohttp.ClientError, TimeoutError, OSError):
            if await faults[name][1]():
                self.done[name] += 1

    async def heal(self) -> None:
        """Take back everything that would keep a job from its end."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self.api.delete(f"/api/v1/namespaces/{NAMESPACE}/resourcequotas/none")
        for node in sorted(self._down):
            await self._restore(node)
        for known in self._jobs():
            if known.body["spec"].get("suspend"):
                with contextlib.suppress(Refused):
                    await self.api.merge(f"{ours.JOBS}/{known.name}", {"spec": {"suspend": False}})

    # ---- what there is

    def _jobs(self, ended: bool = False) -> list[Known]:
        return [k for k in self.observer.jobs.values() if not k.deleted and (k.phase in TERMINAL) == ended]

    def _job(self, ended: bool = False) -> Known | None:
        jobs = self._jobs(ended)
        return self.rng.choice(jobs) if jobs else None

    def _pod(self) -> Object | None:
        """One that runs; trainings three times as often as the others."""
        pods = [
            pod
            for pod in self.observer.pods.values()
            if pod["status"].get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]
        ]
        weights = [3 if pod["metadata"]["labels"].get("finetune.dev/stage") == "train" else 1 for pod in pods]
        return self.rng.choices(pods, weights)[0] if pods else None

    async def _status(self, pod: Object, **status: object) -> bool:
        await self.api.merge(f"{PODS}/{pod['metadata']['name']}/status", {"status": status})
        return True

    def _container(self, pod: Object, code: int, reason: str, message: str) -> Object:
        old = pod["status"]["containerStatuses"][0]
        stamp = pod["status"]["startTime"]
        ended = {"exitCode": code, "reason": reason, "message": message, "startedAt": stamp, "finishedAt": stamp}
        return {**old, "ready": False, "started": False, "state": {"terminated": ended}}

    def _later(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        async def wait() -> None:
            await asyncio.sleep(seconds)
            with contextlib.suppress(Refused, aiohttp.ClientError, OSError):
                await work()

        task = asyncio.create_task(wait())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # ---- pods

    async def _exit(self) -> bool:
        if (pod := self._pod()) is None:
            return False
        code = self.rng.choice(_CODES)
        stage = pod["metadata"]["labels"]["finetune.dev/stage"]
        said = self.rng.choice(
            [
                ours.message(stage, "stopped" if code == 5 else "failed", code, step=7, lastCheckpoint={"step": 7}),
                ours.message(stage, "failed", code, cause={"code": "Unexpected", "message": "something broke"}),
                self.rng.choice(_GARBAGE),
            ]
        )
        notes = {"localcluster/run-for": "0s", "localcluster/exit-code": str(code), "localcluster/message": said}
        await self.api.merge(f"{PODS}/{pod['metadata']['name']}", {"metadata": {"annotations": notes}})
        return True

    async def _out_of_memory(self) -> bool:
        if (pod := self._pod()) is None:
            return False
        return await self._status(pod, phase="Failed", containerStatuses=[self._container(pod, 137, "OOMKilled", "")])

    async def _delete_pod(self) -> bool:
        if (pod := self._pod()) is None:
            return False
        await self.api.delete(f"{PODS}/{pod['metadata']['name']}")
        return True

    async def _delete_pod_by_force(self) -> bool:
        if (pod := self._pod()) is None:
            return False
        await self.api.delete(f"{PODS}/{pod['metadata']['name']}", gracePeriodSeconds=0)
        return True

    async def _evict(self) -> bool:
        if (pod := self._pod()) is None:
            return False
        name = pod["metadata"]["name"]
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": NAMESPACE}}
        await self.api.post(f"{PODS}/{name}/eviction", body)
        return True

    async def _evicted_by_kubelet(self) -> bool:
        if (pod := self._pod()) is None:
            return False
        message = self.rng.choice(_EVICTED) + "Container trainer was using 2Gi, request is 1Gi."
        condition = {
            "type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet", "message": message,
            "lastTransitionTime": pod["status"]["startTime"],
        }  # fmt: skip
        return await self._status(
            pod, phase="Failed", reason="Evicted", message=message,
            conditions=[*pod["status"]["conditions"], condition],
            containerStatuses=[self._container(pod, 137, "Error", "")],
        )  # fmt: skip

    async def _rejected(self) -> bool:
        if (pod := self._pod()) is None:
            return False
        reason = self.rng.choice(_REJECTED)
        return await self._status(
            pod, phase="Failed", reason=reason, message="Pod was rejected", containerStatuses=None
        )

    # ---- children

    async def _delete_child(self) -> bool:
        children = await self.api.items(CHILD_JOBS, labelSelector=SELECTOR)
        alive = [child for child in children if not child["status"].get("completionTime")]
        if not alive:
            return False
        policy = self.rng.choice(["Background", "Background", "Foreground", "Orphan"])
        name = self.rng.choice(alive)["metadata"]["name"]
        if policy == "Orphan":
            self.orphaned_jobs.add(name)
        await self.api.delete(f"{CHILD_JOBS}/{name}", propagationPolicy=policy)
        return True

    async def _delete_helper(self) -> bool:
        path = f"/api/v1/namespaces/{NAMESPACE}/{self.rng.choice(['configmaps', 'services'])}"
        helpers = await self.api.items(path, labelSelector=SELECTOR)
        if not helpers:
            return False
        await self.api.delete(f"{path}/{self.rng.choice(helpers)['metadata']['name']}")
        return True

    # ---- users

    async def _change(self, known: Known | None, **spec: object) -> bool:
        if known is None:
            return False
        await self.api.merge(f"{ours.JOBS}/{known.name}", {"spec": spec})
        return True

    async def _suspend(self) -> bool:
        return await self._change(self._job(), suspend=True)

    async def _resume(self) -> bool:
        suspended = [known for known in self._jobs() if known.body["spec"].get("suspend")]
        return await self._change(self.rng.choice(suspended) if suspended else None, suspend=False)

    async def _edit(self) -> bool:
        change: Object = self.rng.choice(
            [
                {"retry": {"infra": self.rng.randint(0, 6)}},
                {"pods": {"train": {"resources": {"requests": {"cpu": f"{self.rng.randint(100, 900)}m"}}}}},
                {"ttlSecondsAfterFinished": self.rng.choice([5, 60, 3600])},
                {"budget": {"maxDuration": self.rng.choice(["1h", "2h"])}},
                {"pods": {"publish": {"nodeSelector": {"kubernetes.io/hostname": kwok_node(0)}}}},
            ]
        )
        return await self._change(self._job(), **change)

    async def _rerun(self) -> bool:
        return await self._change(self._job(ended=True), runToken=f"r{self.rng.randrange(10**6)}")

    async def _delete_job(self) -> bool:
        if (known := self._job(ended=self.rng.random() < 0.3)) is None:
            return False
        policy = self.rng.choice(["Background", "Foreground"])
        await self.api.delete(f"{ours.JOBS}/{known.name}", propagationPolicy=policy)
        return True

    async def _orphan_job(self) -> bool:
        if (known := self._job()) is None:
            return False
        self.orphaned.add(known.uid)
        await self.api.delete(f"{ours.JOBS}/{known.name}", propagationPolicy="Orphan")
        return True

    # ---- the cluster

    def _node(self) -> str | None:
        up = [node for node in map(kwok_node, range(self.nodes)) if node not in self._down]
        return self.rng.choice(up) if len(up) > 1 else None

    async def _lose_node(self) -> bool:
        if (node := self._node()) is None:
            return False
        body = await self.api.get(f"/api/v1/nodes/{node}")
        self._templates[node] = body
        self._down.add(node)
        await self.api.delete(f"/api/v1/nodes/{node}")
        self._later(self.rng.uniform(5, 40), lambda: self._restore(node))
        return True

    async def _node_not_ready(self) -> bool:
        if (node := self._node()) is None:
            return False
        self._down.add(node)
        await self._ready(node, "Unknown")
        self._later(self.rng.uniform(5, 40), lambda: self._restore(node))
        return True

    _templates: dict[str, Object] = field(default_factory=dict)

    async def _restore(self, node: str) -> None:
        if await self.api.find(f"/api/v1/nodes/{node}") is None:
            old = self._templates[node]
            metadata = {key: old["metadata"][key] for key in ("name", "labels", "annotations")}
            await self.api.post("/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": metadata})
            sizes = {key: old["status"][key] for key in ("capacity", "allocatable")}
            await self.api.merge(f"/api/v1/nodes/{node}/status", {"status": sizes})
        else:
            await self._ready(node, "True")
        self._down.discard(node)

    async def _ready(self, node: str, status: str) -> None:
        body = await self.api.get(f"/api/v1/nodes/{node}")
        conditions = [
            {**found, "status": status, "reason": "Soak"} if found["type"] == "Ready" else found
            for found in body["status"]["conditions"]
        ]
        await self.api.merge(f"/api/v1/nodes/{node}/status", {"status": {"conditions": conditions}})

    async def _quota(self) -> bool:
        path = f"/api/v1/namespaces/{NAMESPACE}/resourcequotas"
        await self.api.post(path, {"metadata": {"name": "none"}, "spec": {"hard": {"count/jobs.batch": "0"}}})
        self._later(self.rng.uniform(5, 30), lambda: self.api.delete(f"{path}/none"))
        return True
