"""One real job of each kind, with every request that the operator made for it: what the other measurements copy.

The API server's audit log shows the requests; the objects are read from it when a job runs and when one has ended.
"""

from __future__ import annotations

import base64
import contextlib
import json
import tempfile
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from finetune_operator.domain.names import run_of

from benchmarks.operator import ours
from benchmarks.operator.control import MERGE, NAMESPACE, Api, Object, cluster, until
from localcluster.spec import LOOPBACK, Spec

OPERATOR_AGENT = "finetune-operator"
_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Request", "verbs": ["create", "update", "patch", "delete"]}],
}
_KINDS = {
    # path of a list -> (key in etcd, owner label or field)
    f"/apis/finetune.dev/v1alpha1/namespaces/{NAMESPACE}/finetunejobs": "finetune.dev/finetunejobs",
    f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs": "jobs",
    f"/api/v1/namespaces/{NAMESPACE}/pods": "pods",
    f"/api/v1/namespaces/{NAMESPACE}/configmaps": "configmaps",
    f"/api/v1/namespaces/{NAMESPACE}/services": "services/specs",
}
DONE, RUNS = "done", "runs"


@dataclass(frozen=True)
class Request:
    """A write."""

    method: str
    path: str
    body: Any
    content_type: str = "application/json"


@dataclass
class Sample:
    """A job: its objects by their key in etcd, and the operator's writes for it in their order."""

    name: str
    uid: str
    version: str
    objects: dict[str, str]
    requests: list[Object] = field(default_factory=list)

    def copy(self, name: str) -> dict[str, bytes]:
        """The same objects for another job: new names and uids throughout."""
        uids = {found["metadata"]["uid"]: str(uuid.uuid4()) for found in map(json.loads, self.objects.values())}
        return {
            self._renamed(key, name, uids): self._renamed(text, name, uids).encode()
            for key, text in self.objects.items()
        }

    def _renamed(self, text: str, name: str, uids: dict[str, str]) -> str:
        for old, new in uids.items():
            text = text.replace(old, new)
        text = text.replace(run_of(self.uid, None), run_of(uids.get(self.uid, self.uid), None))
        return text.replace(self.name, name)


class Specimen:
    """What was recorded."""

    def __init__(self, done: Sample, runs: Sample) -> None:
        self.done, self.runs = done, runs

    def up_to_child(self, name: str, uid: str, version: str) -> list[Request]:
        """The operator's writes for a job up to its first child Job, and the status write after it."""
        found: list[Request] = []
        job_seen = False
        for event in self.done.requests:
            text = json.dumps(event["requestObject"]).replace(self.done.uid, uid)
            text = text.replace(run_of(self.done.uid, None), run_of(uid, None)).replace(self.done.name, name)
            path = (
                event["requestURI"]
                .replace(run_of(self.done.uid, None), run_of(uid, None))
                .replace(self.done.name, name)
            )
            method = {"create": "POST", "patch": "PATCH", "update": "PUT", "delete": "DELETE"}[event["verb"]]
            body = json.loads(text)
            metadata = body.get("metadata", {}) if isinstance(body, dict) else {}
            if "resourceVersion" in metadata:
                metadata["resourceVersion"] = version
            found.append(Request(method, path, body, MERGE if method == "PATCH" else "application/json"))
            reference = event["objectRef"]
            job_seen = job_seen or reference["resource"] == "jobs"
            if job_seen and reference.get("subresource") == "status":
                break
        return found

    def progress(self, number: int) -> Object:
        """The status of a job that trains; NUMBER makes two of them differ as two readings do."""
        job = next(json.loads(text) for key, text in self.runs.objects.items() if "/finetunejobs/" in key)
        status: Object = job["status"]
        if number == 0:
            return status
        now = {"step": 6 + number, "percent": 40 + number, "epoch": 1.2 + number / 10, "loss": 0.9 - number / 10}
        return {"progress": {key: value for key, value in now.items() if key in status["progress"]}}

    def writes(self) -> Counter[str]:
        """The operator's writes in the finished job's life, by what was written."""
        return Counter(
            f"{event['verb']} {'/'.join(filter(None, (event['objectRef']['resource'], event['objectRef'].get('subresource'))))}"
            for event in self.done.requests
        )


async def record(name: str) -> Specimen:
    """Run two jobs on a cluster of their own: one to its end, one until its training runs."""
    folder = Path(tempfile.mkdtemp(prefix="finetune-audit-"))
    policy, log = folder / "policy.json", folder / "audit.log"
    policy.write_text(json.dumps(_POLICY))
    flags = {"kube-apiserver": [f"--audit-policy-file={policy}", f"--audit-log-path={log}"]}
    async with contextlib.AsyncExitStack() as stack:
        spec = stack.enter_context(cluster(name, kwok=1, flags=flags))
        port = await stack.enter_async_context(ours.progress_server())
        api, operator = Api(spec.paths.kubeconfig), None
        try:
            await api.namespace()
            await ours.install(api)
            await ours.claims(api)
            operator = ours.Operator(spec.paths.kubeconfig, FINETUNE_PROGRESS_PORT=str(port))
            await operator.ready()
            both = {stage: ours.ending(stage, "1s") for stage in ("prepare", "publish")}
            await api.post(ours.JOBS, ours.manifest(f"specimen-{DONE}", {**both, "train": ours.ending("train", "1s")}))
            await _phase(api, f"specimen-{DONE}", "Completed")
            await api.post(ours.JOBS, ours.manifest(f"specimen-{RUNS}", {"prepare": both["prepare"]}))
            await _phase(api, f"specimen-{RUNS}", "Training")
            await until("its progress is in its status", lambda: _progress(api, f"specimen-{RUNS}"), 60)
            operator.stop()
            events = [json.loads(line) for line in log.read_text().splitlines()]
            return Specimen(*[await _sample(api, f"specimen-{which}", events) for which in (DONE, RUNS)])
        finally:
            if operator is not None:
                operator.stop()
            await api.close()


async def _phase(api: Api, name: str, phase: str) -> None:
    async def reached() -> bool:
        status = (await api.get(f"{ours.JOBS}/{name}")).get("status", {})
        if status.get("phase") in ("Failed", "Completed") and status["phase"] != phase:
            raise RuntimeError(f"{name} is {status['phase']}: {json.dumps(status)[:2000]}")
        return bool(status.get("phase") == phase)

    await until(f"{name} is {phase}", reached, 90)


async def _progress(api: Api, name: str) -> bool:
    status = (await api.get(f"{ours.JOBS}/{name}"))["status"]
    return bool(status.get("progress", {}).get("percent"))


async def _sample(api: Api, name: str, events: list[Object]) -> Sample:
    objects: dict[str, str] = {}
    for path, key in _KINDS.items():
        for found in await api.items(path):
            if found["metadata"]["name"].startswith(name):
                group, _, rest = path.removeprefix("/api/").removeprefix("/apis/").partition("/namespaces/")
                kind = {"finetunejobs": "FineTuneJob", "jobs": "Job", "pods": "Pod", "configmaps": "ConfigMap"}
                plural = rest.partition("/")[2]
                whole = {"apiVersion": group, "kind": kind.get(plural, "Service"), **found}
                del whole["metadata"]["resourceVersion"]
                objects[f"/registry/{key}/{NAMESPACE}/{found['metadata']['name']}"] = json.dumps(whole)
    job = json.loads(objects[f"/registry/finetune.dev/finetunejobs/{NAMESPACE}/{name}"])
    own = [
        event
        for event in events
        if event.get("userAgent", "").startswith(OPERATOR_AGENT)
        and event["responseStatus"]["code"] < 300
        and name in json.dumps([event["requestURI"], event.get("requestObject")])
    ]
    own.sort(key=lambda event: event["requestReceivedTimestamp"])
    return Sample(name, job["metadata"]["uid"], "", objects, own)


async def store(spec: Spec, objects: list[dict[str, bytes]]) -> None:
    """Put objects straight into etcd: tens of thousands in seconds. The API server sees them as any others."""
    url = f"http://{LOOPBACK}:{spec.ports['etcd']}/v3/kv/txn"
    batch: list[Object] = []
    size = 0
    async with aiohttp.ClientSession() as session:

        async def flush() -> None:
            nonlocal size
            if batch:
                async with session.post(url, json={"success": batch}) as answer:
                    if answer.status != 200:
                        raise RuntimeError(f"etcd answers {answer.status}: {await answer.text()}")
                batch.clear()
                size = 0

        for group in objects:
            for key, value in group.items():
                put = {"key": base64.b64encode(key.encode()).decode(), "value": base64.b64encode(value).decode()}
                batch.append({"requestPut": put})
                size += len(value)
                if len(batch) == 100 or size > 700_000:
                    await flush()
        await flush()
