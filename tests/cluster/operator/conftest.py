"""The real operator process, and a kubelet that is played: pods are bound by the real scheduler, then begin and end as a test says."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest

from .proxy import Proxy

FTJ = "/apis/finetune.dev/v1alpha1"

Pod = dict[str, Any]


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# The trainer's last words.


def said(stage: str, outcome: str = "succeeded", exit_code: int = 0, **more: Any) -> str:
    return json.dumps(
        {"contract": 1, "stage": stage, "outcome": outcome, "exitCode": exit_code, "time": time.time(), **more}
    )


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
FACTS = {
    "model": {"modelType": "llama", "hiddenSize": 128, "layers": 2, "heads": 4, "kvHeads": 4, "headDim": 32,
              "intermediateSize": 512, "vocabSize": 512, "parameters": 700_000},
    "data": {"rows": 80, "tokens": 4000, "trainedTokens": 2000, "longest": 100, "lengths": [[100, 80]]},
}  # fmt: skip
LAST_WORDS: Mapping[str, Mapping[str, Any]] = {"prepare": PREPARED, "train": TRAINED, "publish": PUBLISHED}


@dataclass(frozen=True)
class Act:
    """What a pod does after it was bound. `hold`: it runs until the test lets it go on."""

    exit_code: int | None = 0
    message: str | None = None
    reason: str = ""
    waiting: tuple[str, str] | None = None
    hold: bool = False
    on_stop: int = 5
    step_on_stop: int = 7
    stop_seconds: float = 0
    """From its deletion to its end."""


Script = Callable[[Pod], Act]


def succeed(pod: Pod) -> Act:
    stage = pod["metadata"]["labels"]["finetune.dev/stage"]
    return Act(0, said(stage, **LAST_WORDS[stage]))


def hold_training(pod: Pod) -> Act:
    """Everything succeeds, but a training runs until it is stopped."""
    return Act(hold=True) if pod["metadata"]["labels"]["finetune.dev/stage"] == "train" else succeed(pod)


@dataclass
class Kubelet:
    """Plays every pod of the test's namespace by its script, which may be changed at any time."""

    api: Any
    namespace: str
    script: Script = succeed
    pod_ip: str = "127.77.0.9"
    seen: dict[str, Pod] = field(default_factory=dict)
    """Every pod there ever was, by name, as last seen."""
    overlaps: set[tuple[str, ...]] = field(default_factory=set)
    """Attempts of one job that had pods at the same time."""
    _ended: set[str] = field(default_factory=set)
    _asked: dict[str, float] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self._stop.wait(0.1):
            with contextlib.suppress(Exception):
                pods = self.api.items(f"/api/v1/namespaces/{self.namespace}/pods")
                self._compare_gangs(pods)
                for pod in pods:
                    self._play(pod)

    def _compare_gangs(self, pods: list[Pod]) -> None:
        gangs: dict[str, set[str]] = {}
        for pod in pods:
            labels = pod["metadata"]["labels"]
            if pod["status"].get("phase") in ("Pending", "Running"):
                gangs.setdefault(labels["finetune.dev/job"], set()).add(labels["job-name"])
        self.overlaps |= {tuple(sorted(gang)) for gang in gangs.values() if len(gang) > 1}

    def stop(self) -> None:
        self._stop.set()

    def path(self, pod: Pod) -> str:
        return f"/api/v1/namespaces/{self.namespace}/pods/{pod['metadata']['name']}"

    def of(self, stage: str, attempt: int | None = None) -> list[Pod]:
        """Pods that there ever were of a stage."""
        labels = {"finetune.dev/stage": stage} | ({"finetune.dev/attempt": str(attempt)} if attempt else {})
        return [p for p in self.seen.values() if labels.items() <= p["metadata"]["labels"].items()]

    def _play(self, pod: Pod) -> None:
        uid, phase = pod["metadata"]["uid"], pod["status"].get("phase")
        self.seen[pod["metadata"]["name"]] = pod
        if "nodeName" not in pod["spec"]:
            if "deletionTimestamp" in pod["metadata"]:
                self._remove(pod)
            return
        act = self.script(pod)
        if "deletionTimestamp" in pod["metadata"]:
            if time.monotonic() - self._asked.setdefault(uid, time.monotonic()) < act.stop_seconds:
                return
            if phase == "Running" and uid not in self._ended:
                stage = pod["metadata"]["labels"]["finetune.dev/stage"]
                step = {"step": act.step_on_stop, "lastCheckpoint": {"step": act.step_on_stop}}
                outcome = "stopped" if act.on_stop == 5 else "failed"
                self.end(pod, act.on_stop, said(stage, outcome, act.on_stop, **step))
            self._remove(pod)
        elif act.waiting is not None:
            state = {"waiting": {"reason": act.waiting[0], "message": act.waiting[1]}}
            self._status(pod, {"phase": "Pending", "containerStatuses": [self._container(pod, state)]})
        elif phase == "Pending":
            state = {"running": {"startedAt": now()}}
            self._status(
                pod,
                {
                    "phase": "Running",
                    "podIP": self.pod_ip,
                    "podIPs": [{"ip": self.pod_ip}],
                    "conditions": [{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}],
                    "containerStatuses": [self._container(pod, state, ready=True)],
                },
            )
        elif phase == "Running" and not act.hold:
            self.end(pod, act.exit_code or 0, act.message or "", act.reason)

    def end(self, pod: Pod, exit_code: int, message: str, reason: str = "", finished: str = "") -> None:
        """The container ends, or is found to have ended."""
        self._ended.add(pod["metadata"]["uid"])
        containers = pod["status"].get("containerStatuses") or [{}]
        started = containers[0].get("state", {}).get("running", {}).get("startedAt") or now()
        ended = {
            "exitCode": exit_code,
            "reason": reason or ("Completed" if exit_code == 0 else "Error"),
            "message": message,
            "startedAt": started,
            "finishedAt": finished or now(),
        }
        phase = "Succeeded" if exit_code == 0 else "Failed"
        self._status(pod, {"phase": phase, "containerStatuses": [self._container(pod, {"terminated": ended})]})

    def disrupt(self, pod: Pod, reason: str = "EvictionByEvictionAPI") -> None:
        """Mark the pod as the eviction API, the scheduler or the kubelet do."""
        condition = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": reason,
            "message": "somebody needs the node",
            "lastTransitionTime": now(),
        }
        fresh = self.api.get(self.path(pod))
        self._status(pod, {"conditions": [*fresh["status"].get("conditions", []), condition]})

    def _container(self, pod: Pod, state: dict[str, Any], ready: bool = False) -> dict[str, Any]:
        image = pod["spec"]["containers"][0]["image"]
        return {"name": "trainer", "image": image, "imageID": "", "ready": ready, "restartCount": 0, "state": state}

    def _status(self, pod: Pod, status: dict[str, Any]) -> None:
        with contextlib.suppress(Exception):
            self.api.merge(self.path(pod) + "/status", {"status": status})

    def _remove(self, pod: Pod) -> None:
        with contextlib.suppress(Exception):
            self.api.delete(self.path(pod), gracePeriodSeconds=0)


@pytest.fixture
def kubelet(api: Any, namespace: str) -> Iterator[Kubelet]:
    played = Kubelet(api, namespace)
    thread = threading.Thread(target=played.run, daemon=True)
    thread.start()
    yield played
    played.stop()
    thread.join(5)


@pytest.fixture(scope="module")
def operator(api: Any, start_operator: Callable[..., Any]) -> Iterator[Any]:
    """An operator of every namespace, for the tests of one module."""
    running = start_operator(api.kubeconfig)
    yield running
    assert running.terminate() == 0, running.log.read_text()[-3000:]


def manifest(name: str, namespace: str, **spec: Any) -> dict[str, Any]:
    """A small job on CPUs; `spec` is laid over it."""
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": {"uri": "pvc://models/base"},
            "method": {"type": "lora"},
            "data": {"train": [{"uri": "pvc://data/train.jsonl"}]},
            "compute": {"device": "cpu"},
            "workspace": {"uri": "pvc://scratch"},
            "output": {"uri": "pvc://models/out"},
            **spec,
        },
    }


@dataclass
class Jobs:
    """FineTuneJobs of the test's namespace."""

    api: Any
    namespace: str
    until: Callable[..., Any]

    @property
    def path(self) -> str:
        return f"{FTJ}/namespaces/{self.namespace}/finetunejobs"

    def create(self, name: str = "job", claims: bool = True, **spec: Any) -> dict[str, Any]:
        if claims:
            self.claims()
        return self.api.post(self.path, manifest(name, self.namespace, **spec))

    def claims(self, *names: str, mode: str = "ReadWriteMany") -> None:
        """Claims that are bound to volumes made for them.

        The volume controller now and then binds one only when it compares all of them, every 15 s; the pods of a job that is there
        before are unschedulable until then.
        """
        path = f"/api/v1/namespaces/{self.namespace}/persistentvolumeclaims"
        names = tuple(
            name for name in names or ("models", "data", "scratch") if self.api.find(f"{path}/{name}") is None
        )
        for name in names:
            volume = f"{self.namespace}-{name}"
            size = {"storage": "1Gi"}
            self.api.post(
                "/api/v1/persistentvolumes",
                {
                    "metadata": {"name": volume},
                    "spec": {
                        "capacity": size,
                        "accessModes": [mode],
                        "hostPath": {"path": "/tmp"},
                        "storageClassName": "",
                        "persistentVolumeReclaimPolicy": "Delete",
                        "claimRef": {"name": name, "namespace": self.namespace},
                    },
                },
            )
            self.api.post(
                path,
                {
                    "metadata": {"name": name},
                    "spec": {
                        "accessModes": [mode],
                        "resources": {"requests": size},
                        "storageClassName": "",
                        "volumeName": volume,
                    },
                },
            )
        for name in names:
            self.until(
                "the claim is bound", lambda name=name: self.api.get(f"{path}/{name}")["status"].get("phase") == "Bound"
            )

    def get(self, name: str = "job") -> dict[str, Any]:
        return self.api.get(f"{self.path}/{name}")

    def status(self, name: str = "job") -> dict[str, Any]:
        found = self.api.find(f"{self.path}/{name}")
        return found["status"] if found is not None else {}

    def patch(self, name: str = "job", **spec: Any) -> Any:
        return self.api.merge(f"{self.path}/{name}", {"spec": spec})

    def delete(self, name: str = "job") -> None:
        self.api.delete(f"{self.path}/{name}")

    def wait(self, phase: str, name: str = "job", seconds: float = 60) -> dict[str, Any]:
        """The status when the job is in this phase. An end that was not waited for fails at once."""
        seen: dict[str, Any] = {}

        def look() -> bool:
            seen.clear()
            seen.update(self.status(name))
            at = seen.get("phase")
            assert at == phase or at not in ("Failed", "Completed"), json.dumps(seen, indent=1)
            return at == phase

        try:
            self.until(f"{name} is {phase}", look, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{json.dumps(seen, indent=1)}") from None
        return dict(seen)

    def wait_reason(self, reason: str, name: str = "job", seconds: float = 30) -> dict[str, Any]:
        self.until(
            f"{name} says {reason}; it says {self.status(name).get('reason')}",
            lambda: self.status(name).get("reason") == reason,
            seconds,
        )
        return self.status(name)

    def recovers(self, name: str = "job", seconds: float = 60) -> None:
        """Its first stage gets done after all."""

        def look() -> bool:
            status = self.status(name)
            assert status.get("phase") != "Failed", json.dumps(status, indent=1)
            return any(a["outcome"] == "Succeeded" for a in status.get("attempts", []))

        self.until(f"{name} recovers", look, seconds)

    def condition(self, kind: str, name: str = "job") -> dict[str, Any]:
        """The condition, or an empty one."""
        return next((c for c in self.status(name).get("conditions", []) if c["type"] == kind), {})

    def children(self, kind: str = "jobs") -> list[dict[str, Any]]:
        root = (
            f"/apis/batch/v1/namespaces/{self.namespace}" if kind == "jobs" else f"/api/v1/namespaces/{self.namespace}"
        )
        found = self.api.items(f"{root}/{kind}", labelSelector="app.kubernetes.io/managed-by=finetune-operator")
        return sorted(found, key=lambda item: item["metadata"]["creationTimestamp"] + item["metadata"]["name"])

    def events(self, name: str = "job") -> list[dict[str, Any]]:
        return [
            event
            for event in self.api.items(f"/apis/events.k8s.io/v1/namespaces/{self.namespace}/events")
            if event["regarding"].get("kind") == "FineTuneJob" and event["regarding"]["name"] == name
        ]


@pytest.fixture
def jobs(api: Any, namespace: str, eventually: Callable[..., Any]) -> Jobs:
    return Jobs(api, namespace, eventually)


@pytest.fixture
def proxy(api: Any, tmp_path: Path) -> Iterator[Proxy]:
    proxy = Proxy(api, tmp_path / "kubeconfig")
    proxy.start()
    yield proxy
    proxy.stop()


@pytest.fixture(scope="session")
def acts() -> Any:
    """Names that tests need from here."""

    class Acts:
        FACTS: ClassVar[Mapping[str, Any]] = FACTS
        Act, said, succeed, hold_training, manifest = (
            Act,
            staticmethod(said),
            staticmethod(succeed),
            staticmethod(hold_training),
            staticmethod(manifest),
        )

    return Acts
