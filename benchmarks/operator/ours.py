"""The operator as a process of its own, and the jobs that the measurements give it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

from benchmarks.operator.control import NAMESPACE, Api, Object, until

ROOT = Path(__file__).resolve().parents[2]
FTJ = "/apis/finetune.dev/v1alpha1"
JOBS = f"{FTJ}/namespaces/{NAMESPACE}/finetunejobs"
CLAIMS = ("models", "data", "scratch")
PREPARED = {
    "data": {"format": "messages", "rows": 100, "trainRows": 80, "validationRows": 10, "testRows": 10, "tokens": 4000},
    "plan": {"steps": 15, "epochs": 3, "globalBatchSize": 16},
}
TRAINED = {
    "step": 15,
    "metrics": {"loss": 0.5, "eval_loss": 0.6},
    "lastCheckpoint": {"step": 15, "path": "checkpoints/step-15"},
    "evaluation": {"rows": 10, "metrics": [{"metric": "loss", "base": 3.0, "tuned": 0.5}]},
}
PUBLISHED = {"artifacts": {"uri": "pvc://models/out", "files": 3, "bytes": 100}}
RESULTS: dict[str, Object] = {"prepare": PREPARED, "train": TRAINED, "publish": PUBLISHED}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def message(stage: str, outcome: str = "succeeded", exit_code: int = 0, **more: Any) -> str:
    """A trainer's termination message."""
    said = {"contract": 1, "stage": stage, "outcome": outcome, "exitCode": exit_code, "time": time.time(), **more}
    return json.dumps(said)


def ending(stage: str, after: str) -> Object:
    """Pod settings by which KWOK ends a stage's pods with success."""
    return {"annotations": {"localcluster/run-for": after, "localcluster/message": message(stage, **RESULTS[stage])}}


def manifest(name: str, pods: Object | None = None, **spec: Any) -> Object:
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "model": {"uri": "pvc://models/base"},
            "method": {"type": "lora", "lora": {"rank": 16, "alpha": 32}},
            "data": {"train": [{"uri": "pvc://data/train.jsonl"}], "split": {"validation": 0.1, "test": 0.1}},
            "training": {"epochs": 3, "globalBatchSize": 16, "learningRate": 0.0002},
            "compute": {"device": "cpu"},
            "workspace": {"uri": "pvc://scratch"},
            "output": {"uri": "pvc://models/out"},
            **({"pods": pods} if pods else {}),
            **spec,
        },
    }


async def install(api: Api) -> None:
    """The CRD, and claims that are bound."""
    crd = yaml.safe_load((ROOT / "crds" / "finetunejobs.yaml").read_text())
    await api.apply(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd['metadata']['name']}", crd)
    await until("the CRD is served", lambda: api.serves(f"{FTJ}/finetunejobs"))


async def claims(api: Api) -> None:
    """Claims that jobs name, bound to volumes made for them."""
    size = {"storage": "1Gi"}
    for name in CLAIMS:
        both = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
        reference = {"name": name, "namespace": NAMESPACE}
        volume = {
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
            "spec": {**both, "capacity": size, "hostPath": {"path": "/tmp"}, "claimRef": reference},
        }  # fmt: skip
        claim = {
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
            "spec": {**both, "resources": {"requests": size}, "volumeName": name},
        }  # fmt: skip
        await api.apply(f"/api/v1/persistentvolumes/{name}", volume)
        await api.apply(f"/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims/{name}", claim)


@contextlib.asynccontextmanager
async def progress_server() -> AsyncIterator[int]:
    """Answer for the progress endpoint of every KWOK pod, always with the same reading; its port."""

    async def answer(_: web.Request) -> web.Response:
        return web.json_response(
            {
                "contract": 1, "stage": "train", "step": 6, "totalSteps": 15, "percent": 40, "epoch": 1.2, "loss": 0.9,
                "learningRate": 0.0001, "tokensPerSecond": 5000, "etaSeconds": 900, "updated": time.time(),
            }
        )  # fmt: skip

    application = web.Application()
    application.router.add_get("/progress", answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "0.0.0.0", port).start()
    try:
        yield port
    finally:
        await runner.cleanup()


LEASE = "finetune-operator"


def replica(identity: str) -> dict[str, str]:
    """Settings of one of several replicas."""
    return {
        "FINETUNE_LEADER_ELECTION": "true",
        "FINETUNE_LEASE": LEASE,
        "POD_NAME": identity,
        "POD_NAMESPACE": NAMESPACE,
    }


class Operator:
    """A process of `python -m finetune_operator`, or of another module that runs it."""

    def __init__(self, kubeconfig: Path, module: str = "finetune_operator", **settings: str) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="finetune-bench-"))
        defaults = self.folder / "defaults.json"
        defaults.write_text(json.dumps({"pods": {"image": "registry.example/trainer:1"}}))
        self.log = self.folder / "log"
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in ("", "crds", "operator")),
            "KUBECONFIG": str(kubeconfig),
            "FINETUNE_DEFAULTS": str(defaults),
            "FINETUNE_HTTP": f"127.0.0.1:{self.port}",
            **settings,
        }
        self.started = time.monotonic()
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                [os.environ.get("OPERATOR_PYTHON") or sys.executable, "-m", module],
                env=environment,
                cwd=self.folder,
                stdout=output,
                stderr=output,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            return str(answer.read().decode())

    async def ready(self, seconds: float = 120) -> float:
        """Wait for /readyz; seconds since the process was started."""
        end = time.monotonic() + seconds
        while True:
            if self.process.poll() is not None:
                raise RuntimeError(
                    f"the operator ended with {self.process.returncode}:\n{self.log.read_text()[-2000:]}"
                )
            try:
                if await asyncio.to_thread(self.get, "/readyz") == "ok":
                    return time.monotonic() - self.started
            except OSError:
                pass
            if time.monotonic() > end:
                raise TimeoutError(f"the operator is not ready after {seconds:g} s:\n{self.log.read_text()[-2000:]}")
            await asyncio.sleep(0.05)

    async def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples that carry these labels."""
        total = 0.0
        for line in (await asyncio.to_thread(self.get, "/metrics")).splitlines():
            if line.startswith((name + "{", name + " ")) and all(f'{k}="{v}"' in line for k, v in labels.items()):
                total += float(line.rsplit(" ", 1)[1])
        return total

    async def writes(self) -> float:
        return sum(
            [await self.metric("rest_client_requests_total", method=m) for m in ("POST", "PATCH", "PUT", "DELETE")]
        )

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait()
