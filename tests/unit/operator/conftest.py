"""A little cluster in memory for `plan`: it carries plans out as the API server and the Job controller would."""

from __future__ import annotations

import asyncio
import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from finetune_api.effective import PlatformDefaults
from finetune_api.finetunejob import FineTuneJob
from finetune_operator.domain.observed import (
    ClaimView,
    Ended,
    JobView,
    ObservedState,
    PodView,
    ProgressReading,
    Read,
    Refusal,
)
from finetune_operator.domain.plan import plan
from finetune_operator.domain.plan_builder import Config, Plan
from finetune_operator.runtime.mergepatch import difference

START = 1_800_000_000.0


async def until(condition: Callable[[], bool], seconds: float = 30) -> float:
    """Wait for it; how many seconds that took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds
        await asyncio.sleep(0.01)
    return time.monotonic() - began


def manifest(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "bot", "namespace": "team", "uid": "u-1", "generation": 1},
        "spec": {
            "model": {"uri": "pvc://models/base"},
            "method": {"type": "lora"},
            "data": {"train": [{"uri": "pvc://data/train.jsonl"}]},
            "compute": {"device": "cpu"},
            "workspace": {"uri": "pvc://scratch/work"},
            "output": {"uri": "pvc://models/out"},
            **spec,
        },
    }


def last_words(stage: str, outcome: str = "succeeded", exit_code: int = 0, time: float = START, **more: Any) -> str:
    return json.dumps({"contract": 1, "stage": stage, "outcome": outcome, "exitCode": exit_code, "time": time, **more})


FACTS: dict[str, Any] = {
    "model": {"modelType": "llama", "hiddenSize": 128, "layers": 2, "heads": 4, "kvHeads": 4, "headDim": 32,
              "intermediateSize": 512, "vocabSize": 512, "parameters": 700_000},
    "data": {"rows": 800, "tokens": 80_000, "trainedTokens": 40_000, "longest": 200, "lengths": [[100, 400], [200, 400]]},
}  # fmt: skip
PREPARED: dict[str, Any] = {
    "data": {"rows": 800, "trainRows": 800},
    "plan": {"steps": 150},
    "facts": FACTS,
    "decided": {"training": {"learningRate": 2e-4, "epochs": 3}},
}
"""What prepare's last word holds for a plan."""


@dataclass
class World:
    """`body` is the FineTuneJob as the API server holds it."""

    body: dict[str, Any]
    now: float = START
    config: Config = field(
        default_factory=lambda: Config(PlatformDefaults.model_validate({"pods": {"image": "trainer:1"}}))
    )
    jobs: dict[str, JobView] = field(default_factory=dict)
    pods: dict[str, dict[str, PodView]] = field(default_factory=dict)
    known: set[tuple[str, str]] = field(default_factory=set)
    manifests: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    claims: dict[str, ClaimView] = field(default_factory=dict)
    warnings: dict[str, tuple[str, ...] | None] = field(default_factory=dict)
    refusals: dict[tuple[str, str], Refusal] = field(default_factory=dict)
    pods_read: set[str] = field(default_factory=set)
    jobs_read: dict[str, bool] = field(default_factory=dict)
    progress: ProgressReading | None = None
    events: list[Any] = field(default_factory=list)
    queued_elsewhere: bool = False
    reads: list[Read] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    counter: int = 0

    # Looking and acting.

    def observed(self) -> ObservedState:
        return ObservedState(
            job=FineTuneJob.parse(self.body),
            jobs=dict(self.jobs),
            pods={job: tuple(pods.values()) for job, pods in self.pods.items()},
            known=frozenset(self.known),
            claims=dict(self.claims),
            warnings=dict(self.warnings),
            refusals=dict(self.refusals),
            pods_read=frozenset(self.pods_read),
            jobs_read=dict(self.jobs_read),
            progress=self.progress,
        )

    def plan(self) -> Plan:
        return plan(self.observed(), self.now, self.config)

    def step(self, upto: int | None = None) -> Plan:
        """One plan carried out. `upto`: a crash after so many writes."""
        drawn = self.plan()
        writes = [lambda m=m: self._create(m) for m in drawn.create]
        writes += [lambda p=p: self._patch(p.name, p.body) for p in drawn.patch]
        writes += [lambda d=d: self._delete(d.name) for d in drawn.delete]
        if drawn.status is not None:
            place = 0 if drawn.status_first else len(writes)
            writes.insert(place, lambda: self._write(drawn))
        for write in writes[:upto]:
            write()
        self.reads += sorted(drawn.reads, key=lambda read: read.name)
        self.pods_read |= {read.name for read in drawn.reads if read.kind == "pods"}
        self.jobs_read |= {read.name: False for read in drawn.reads if read.kind == "job"}
        return drawn

    def settle(self, rounds: int = 20) -> Plan:
        """Plan and act until nothing is left to do, as the reconciler does: what was refused is not tried twice."""
        tried: set[tuple[str, str]] = set()
        for _ in range(rounds):
            before = copy.deepcopy(self.body.get("status"))
            drawn = self.step()
            asked = {(body["kind"], body["metadata"]["name"]) for body in drawn.create}
            quiet = not (drawn.patch or drawn.delete or any(read.kind in ("job", "pods") for read in drawn.reads))
            if asked <= tried and quiet and before == self.body.get("status"):
                return drawn
            tried |= asked
        raise AssertionError("plans do not come to rest")

    def _write(self, drawn: Plan) -> None:
        assert drawn.status is not None
        wire = json.loads(json.dumps(drawn.status.wire()))
        if difference(self.body.get("status") or {}, wire):
            self.events += drawn.events
        self.body["status"] = wire

    def _create(self, body: dict[str, Any]) -> None:
        kind, name = body["kind"], body["metadata"]["name"]
        self.manifests[kind, name] = body
        if kind != "Job":
            self.known.add((kind, name))
            return
        if name in self.jobs:
            return  # AlreadyExists
        self.counter += 1
        full = copy.deepcopy(body)
        full["metadata"] |= {"uid": f"j-{self.counter}"}
        if self.queued_elsewhere:
            full["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "team-queue"
        view = JobView.of(full)
        self.jobs[name] = replace(view, created=self.now)
        self.pods[name] = {}

    def _patch(self, name: str, body: dict[str, Any]) -> None:
        held = body["metadata"]["annotations"]["finetune.dev/held"] is not None
        self.jobs[name] = replace(self.jobs[name], suspended=body["spec"]["suspend"], held=held)

    def _delete(self, name: str) -> None:
        self.deleted.append(name)
        self.known.discard(("Service", name))
        if name in self.jobs:
            del self.jobs[name]
            self.pods.pop(name, None)

    # What happens in the cluster.

    def run_config(self, stage: str) -> str:
        """What the pods of the stage's latest Job are to do."""
        manifest = self.manifests["Job", self.job(stage).name]
        return str(manifest["spec"]["template"]["metadata"]["annotations"]["finetune.dev/run-config"])

    def job(self, stage: str) -> JobView:
        """The newest Job of a stage."""
        return max((j for j in self.jobs.values() if j.stage == stage), key=lambda j: (j.created, j.attempt))

    def pod(self, stage: str, index: int = 0, **change: Any) -> PodView:
        """Make or change the newest pod of a rank."""
        return self.pod_of(self.job(stage), index, **change)

    def pod_of(self, job: JobView, index: int, **change: Any) -> PodView:
        mine = self.pods.setdefault(job.name, {})
        known = [p for p in mine.values() if p.index == index and not p.over]
        if known:
            pod = known[-1]
        else:
            self.counter += 1
            name = f"{job.name}-{index}-{self.counter}"
            pod = PodView(name, f"p-{self.counter}", job.name, index, "Pending", self.now)
        pod = replace(pod, **change)
        mine[pod.name] = pod
        return pod

    def ended(self, exit_code: int, text: str = "", reason: str = "Error") -> dict[str, Any]:
        """A pod's fields when its container has ended."""
        ended = Ended(exit_code, reason, text, self.now, self.now)
        return {"phase": "Succeeded" if exit_code == 0 else "Failed", "running_since": None, "ended": ended}

    def share(self, *claims: str) -> None:
        for claim in claims or ("scratch", "models"):
            self.claims[claim] = ClaimView(claim, True, ("ReadWriteMany",))

    def run(self, stage: str, nodes: int = 1) -> None:
        for index in range(nodes):
            self.pod(stage, index, phase="Running", node=f"node-{index}", ip=f"10.0.0.{index}", running_since=self.now)

    def end(
        self, stage: str, exit_code: int, index: int = 0, text: str = "", reason: str = "Error", **change: Any
    ) -> None:
        self.pod(stage, index, node=f"node-{index}", **self.ended(exit_code, text, reason), **change)

    def gone(self, stage: str, index: int) -> None:
        """The pods of a rank are there no more."""
        job = self.job(stage).name
        self.pods[job] = {name: pod for name, pod in self.pods[job].items() if pod.index != index}

    def finish(self, stage: str, nodes: int = 1, **more: Any) -> None:
        """The stage's pods succeed, and its Job with them."""
        for index in range(nodes):
            self.end(stage, 0, index, last_words(stage, **more), reason="Completed")
        self.set(stage, complete=self.now)

    def fail(self, stage: str) -> None:
        self.set(stage, failing=self.now, failed=self.now, failure="BackoffLimitExceeded: ...")

    def set(self, stage: str, **change: Any) -> None:
        job = self.job(stage)
        self.jobs[job.name] = replace(job, **change)

    def edit(self, **spec: Any) -> None:
        self.body["spec"] |= spec
        self.body["metadata"]["generation"] += 1

    def through(self, *stages: str, nodes: int = 1) -> None:
        """Let these stages succeed one after the other."""
        self.settle()
        for stage in stages:
            self.settle()
            count = nodes if stage == "train" else 1
            self.run(stage, count)
            self.settle()
            self.now += 10
            self.finish(stage, count)
            self.settle()

    def prepare(self, **told: Any) -> None:
        """Let the data be prepared; `told` is in the last word."""
        self.settle()
        self.run("prepare")
        self.settle()
        self.finish("prepare", **told)
        self.settle()

    # What can be seen of it.

    @property
    def stages(self) -> list[str]:
        """Of the Jobs that there are."""
        return sorted({job.stage for job in self.jobs.values()})

    @property
    def truths(self) -> dict[str, str]:
        return {c["type"]: c["status"] for c in self.status["conditions"]}

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.body.get("status") or {}
        return found

    @property
    def state(self) -> dict[str, Any]:
        """What only the operator reads."""
        found: dict[str, Any] = json.loads(self.status.get("state", "{}"))
        return found

    @property
    def usage(self) -> dict[str, Any]:
        found: dict[str, Any] = self.status.get("usage", {})
        return found

    def condition(self, kind: str) -> str | None:
        return next((c["status"] for c in self.status.get("conditions", []) if c["type"] == kind), None)

    @property
    def book(self) -> list[tuple[str, int, str]]:
        return [(a["stage"], a["number"], a["outcome"]) for a in self.status.get("attempts", [])]


@pytest.fixture
def make_world() -> Any:
    def make(**spec: Any) -> World:
        return World(manifest(**spec))

    return make


@pytest.fixture
def prepared() -> dict[str, Any]:
    return copy.deepcopy(PREPARED)


@pytest.fixture
def words() -> Any:
    return last_words
