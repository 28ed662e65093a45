"""kill -9 after every write of the operator, on every path that a job can take."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from .attempts import DONE, History, history
from .proxy import Fault, Proxy

pytestmark = pytest.mark.control

STAGES = ("prepare", "train", "publish")
GANG = {"device": "cpu", "nodes": 2}

FORKS = """
import ctypes, os, pathlib, signal, sys
from finetune_operator.__main__ import main
pid_file = pathlib.Path(os.environ["PID_FILE"])
while os.read(0, 1):
    pid = os.fork()
    if pid == 0:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        sys.exit(main())
    pid_file.write_text(str(pid))
    os.waitpid(pid, 0)
    pid_file.unlink()
"""
"""Starts an operator for each byte, one at a time: a process of its own each, without the second that the imports take. It dies
with this one (PR_SET_PDEATHSIG)."""


@dataclass
class Crashes:
    """The operator dies each time the API server has done one of its writes, before it has the answer."""

    jobs: Any
    proxy: Proxy
    server: Any
    pid_file: Path
    deadly: bool = True
    deaths: int = 0
    created: set[tuple[str, str]] = field(default_factory=set)
    """(run, uid) of each Job that there was."""
    problems: list[str] = field(default_factory=list)
    _dead: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        self._dead.clear()
        self.server.process.stdin.write("\n")
        self.server.process.stdin.flush()

    def until(self, what: str, condition: Callable[[], Any], seconds: float = 90) -> None:
        """Start the operator whenever it has died, until the condition holds."""
        end = time.monotonic() + seconds
        while not condition():
            if self._dead.is_set() and not self.pid_file.exists():
                assert self.deaths < 80, self.report(what)
                self.start()
            assert time.monotonic() < end, self.report(what)
            time.sleep(0.03)

    def phase(self, phase: str) -> None:
        self.until(f"it is {phase}", lambda: self.jobs.status().get("phase") == phase)

    def all_run(self) -> None:
        self.until("all its pods run", lambda: self.jobs.condition("Running").get("status") == "True")

    def after_write(self, path: str, code: int) -> None:
        if "/events" in path or code >= 300 or self._dead.is_set():
            return
        deadly = self.deadly
        if deadly:
            self._dead.set()
        self._check()
        if deadly:
            self.deaths += 1
            self._kill()

    def _kill(self) -> None:
        """Kill the operator that runs, or is just being started: its process id is written a moment later."""
        while self.server.process.poll() is None:
            pid = self._pid()
            if pid is None:
                time.sleep(0.005)
                continue
            os.kill(pid, signal.SIGKILL)
            while self._pid() == pid and self.server.process.poll() is None:
                time.sleep(0.005)
            return

    def _pid(self) -> int | None:
        try:
            return int(self.pid_file.read_text())
        except (FileNotFoundError, ValueError):
            return None

    def rule(self, method: str, path: str) -> Fault | None:
        """What the dead process still had under way is turned away."""
        return Fault("answer", 503) if self._dead.is_set() else None

    def _check(self) -> None:
        """Each Job has its place in the recorded history: what comes before it has ended, and that is on record."""
        status = self.jobs.status()
        recorded = {(stage, number): outcome for stage, number, outcome in history(status)}
        for job in self.jobs.children():
            labels = job["metadata"]["labels"]
            stage, number = labels["finetune.dev/stage"], int(labels["finetune.dev/attempt"])
            self.created.add((labels["finetune.dev/run"], job["metadata"]["uid"]))
            if labels["finetune.dev/run"] != status.get("run"):
                continue
            if number > 1 and recorded.get((stage, number - 1), "Running") == "Running":
                self.problems.append(f"{stage}-{number} exists, and the end of the attempt before is not recorded")
            if any("Succeeded" not in (o for (s, _), o in recorded.items() if s == earlier)
                   for earlier in STAGES[: STAGES.index(stage)]):  # fmt: skip
                self.problems.append(f"{stage}-{number} exists, and a stage before it is not recorded as done")

    def report(self, what: str) -> str:
        writes = "\n".join(f"{m} {c} {p}" for m, p, c in self.proxy.writes)
        return f"{what}: not in time\n{writes}\n{json.dumps(self.jobs.status(), indent=1)}"


@pytest.fixture
def crashes(jobs: Any, proxy: Proxy, namespace: str, start_operator: Any, tmp_path: Path) -> Crashes:
    pid_file = tmp_path / "pid"
    settings = {"FINETUNE_NAMESPACES": namespace, "PID_FILE": str(pid_file)}
    server = start_operator(proxy.kubeconfig, wait=False, program=("-c", FORKS), **settings)
    crashes = Crashes(jobs, proxy, server, pid_file)
    proxy.after_write, proxy.rule, proxy.one_write_at_a_time = crashes.after_write, crashes.rule, True
    crashes.start()
    return crashes


@dataclass
class Walk:
    """What a path needs."""

    crashes: Crashes
    jobs: Any
    kubelet: Any
    acts: Any

    def hold_training(self) -> None:
        """Trainings run until they are stopped, which takes a moment."""

        def script(pod: Any) -> Any:
            if pod["metadata"]["labels"]["finetune.dev/stage"] == "train":
                return self.acts.Act(hold=True, stop_seconds=0.5)
            return self.acts.succeed(pod)

        self.kubelet.script = script

    def first_attempt(self, act: Any) -> None:
        """How the first attempt at the training ends; the second succeeds."""

        def script(pod: Any) -> Any:
            labels = pod["metadata"]["labels"]
            first = (labels["finetune.dev/stage"], labels["finetune.dev/attempt"]) == ("train", "1")
            return act if first else self.acts.succeed(pod)

        self.kubelet.script = script

    def start_training(self, **spec: Any) -> None:
        """The walk begins when all pods of the training run."""
        self.crashes.deadly = False
        self.hold_training()
        self.jobs.create(compute=GANG, **spec)
        self.crashes.phase("Training")
        self.crashes.all_run()
        self.crashes.deadly = True

    def resume(self, **spec: Any) -> None:
        self.kubelet.script = self.acts.succeed
        self.jobs.patch(**spec)


def failure(walk: Walk) -> History:
    walk.first_attempt(walk.acts.Act(1, "RuntimeError: the first attempt fails"))
    walk.jobs.create(compute=GANG, retry={"infra": 1})
    walk.crashes.phase("Completed")
    assert json.loads(walk.jobs.status()["state"]).get("infraFailures") == 1, walk.crashes.report("a failure counted")
    assert len(walk.kubelet.of("train", 1)) == len(walk.kubelet.of("train", 2)) == 2
    assert walk.crashes.deaths >= 12
    return [DONE[0], ("train", 1, "Failed"), ("train", 2, "Succeeded"), DONE[2]]


def suspend(walk: Walk) -> History:
    walk.start_training()
    walk.jobs.patch(suspend=True)
    walk.crashes.phase("Suspended")
    walk.resume(suspend=False)
    walk.crashes.phase("Completed")
    return DONE


def eviction(walk: Walk) -> History:
    walk.start_training(retry={"infra": 0})
    first, second = sorted(walk.kubelet.of("train"), key=lambda pod: pod["spec"]["hostname"])
    walk.kubelet.disrupt(second)
    walk.kubelet.end(second, 137, "")
    walk.kubelet.end(first, 7, walk.acts.said("train", "failed", 7, step=9, lastCheckpoint={"step": 8}))
    walk.crashes.until("a second attempt", lambda: walk.kubelet.of("train", 2))
    walk.kubelet.script = walk.acts.succeed
    walk.crashes.phase("Completed")
    return [DONE[0], ("train", 1, "Evicted"), ("train", 2, "Succeeded"), DONE[2]]


def time_to_live(walk: Walk) -> History:
    walk.crashes.deadly = False
    walk.jobs.create(compute=GANG, ttlSecondsAfterFinished=1)
    walk.crashes.phase("Publishing")
    walk.crashes.deadly = True
    walk.crashes.until("its children are deleted", lambda: walk.jobs.status()["phase"] == "Completed" and not any(
        walk.jobs.children(kind) for kind in ("jobs", "services", "pods")))  # fmt: skip
    return DONE


def rerun(walk: Walk) -> History:
    walk.crashes.deadly = False
    walk.jobs.create(ttlSecondsAfterFinished=1000)
    walk.crashes.phase("Completed")
    run = walk.jobs.status()["run"]
    walk.crashes.deadly = True
    walk.jobs.patch(runToken="again")
    walk.crashes.until("the second run", lambda: walk.jobs.status().get("run") not in (None, run))
    walk.crashes.phase("Completed")
    walk.crashes.until("only its Jobs are there", lambda: len(walk.jobs.children()) == 3)
    assert {job["metadata"]["labels"]["finetune.dev/run"] for job in walk.jobs.children()} == {
        walk.jobs.status()["run"]
    }
    return DONE


def budget(walk: Walk) -> History:
    walk.start_training()
    walk.jobs.patch(budget={"maxDuration": "2s"})
    walk.crashes.phase("Suspended")
    assert walk.jobs.status()["reason"] == "BudgetExhausted"
    walk.resume(budget={"maxDuration": "1h"})
    walk.crashes.phase("Completed")
    assert 2 <= walk.jobs.status()["usage"]["trainSeconds"] <= 15
    return DONE


def out_of_memory(walk: Walk) -> History:
    walk.crashes.deadly = False
    walk.first_attempt(walk.acts.Act(137, "", reason="OOMKilled"))
    walk.jobs.create(compute=GANG, retry={"oom": 1, "infra": 0})
    walk.crashes.phase("Queued")
    walk.crashes.deadly = True
    walk.crashes.phase("Completed")
    assert len(json.loads(walk.jobs.status()["state"])["notches"]) == 1
    return [DONE[0], ("train", 1, "Failed"), ("train", 2, "Succeeded"), DONE[2]]


def approval(walk: Walk) -> History:
    def script(pod: Any) -> Any:
        if pod["metadata"]["labels"]["finetune.dev/stage"] == "prepare":
            return walk.acts.Act(0, walk.acts.said("prepare", plan={"steps": 15}, facts=walk.acts.FACTS, decided={}))
        return walk.acts.succeed(pod)

    walk.kubelet.script = script
    walk.jobs.create(budget={"approval": "Manual"})
    walk.crashes.phase("AwaitingApproval")
    assert len(walk.jobs.children()) == 1
    walk.jobs.patch(budget={"approvedPlan": walk.jobs.status()["plan"]["digest"]})
    walk.crashes.phase("Completed")
    return DONE


@pytest.mark.parametrize(
    "path",
    [failure, suspend, eviction, time_to_live, rerun, budget, out_of_memory, approval],
    ids=lambda path: path.__name__,
)
def test_killed_after_every_single_write(
    path: Callable[[Walk], History], crashes: Crashes, jobs: Any, kubelet: Any, acts: Any
) -> None:
    expected = path(Walk(crashes, jobs, kubelet, acts))
    status = jobs.status()
    assert history(status) == expected
    assert crashes.problems == []
    assert kubelet.overlaps == set()
    assert [run for run, _ in crashes.created].count(status["run"]) == len(expected), crashes.report(
        "one Job an attempt"
    )
    assert crashes.deaths >= 4, f"{crashes.deaths} deaths"
