"""Every fault of the API server in every phase of a job's life: the same end, and nothing happens twice."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from .attempts import DONE, history
from .proxy import Fault, Proxy

pytestmark = pytest.mark.control

FAULTS = {
    "409": Fault("answer", 409),
    "410": Fault("answer", 410),
    "429": Fault("answer", 429, {"Retry-After": "1"}),
    "500": Fault("answer", 500),
    "503": Fault("answer", 503),
    "lost": Fault("lose"),
    "slow": Fault("slow", seconds=1),
    "dropped": Fault("drop"),
}
OUTAGE_S = 10


def phase_of(method: str, path: str) -> str:
    kind = path.rsplit("/", 2)[-2 if method in ("PATCH", "DELETE") else -1]
    match method, kind:
        case "PATCH", _ if path.endswith("/status"):
            return "status"
        case "POST" | "PATCH" | "DELETE", "jobs" | "services":
            return f"{method} {kind}"
    return ""


def test_every_fault_in_every_phase(
    jobs: Any,
    kubelet: Any,
    acts: Any,
    namespace: str,
    start_operator: Any,
    proxy: Proxy,
    eventually: Callable[..., Any],
) -> None:
    """As many jobs as faults go through creation, release, suspension, an outage, resumption and deletion together. In each of
    these phases every fault is given to one write."""
    pending: dict[str, list[str]] = {}
    given: Counter[tuple[str, str]] = Counter()
    down, moment = threading.Event(), ["life"]

    def rule(method: str, path: str) -> Fault | None:
        if down.is_set():
            return Fault("drop")
        phase = phase_of(method, path)
        waiting = pending.setdefault(f"{moment[0]}: {phase}", list(FAULTS)) if phase else []
        if not waiting:
            return None
        fault = waiting.pop()
        given[moment[0], phase] += 1
        return FAULTS[fault]

    def all_are(phase: str, seconds: float = 60) -> None:
        eventually(f"all are {phase}", lambda: {jobs.status(name).get("phase") for name in names} == {phase}, seconds)

    proxy.rule = rule
    operator = start_operator(proxy.kubeconfig, FINETUNE_NAMESPACES=namespace)
    kubelet.script = acts.hold_training
    names = [f"job-{fault}" for fault in FAULTS]
    for name in names:
        jobs.create(name, ttlSecondsAfterFinished=1, compute={"device": "cpu", "nodes": 2})
    all_are("Training")
    moment[0] = "suspend"
    for name in names:
        jobs.patch(name, suspend=True)
    all_are("Suspended")
    down.set()
    proxy.cut_watches()
    kubelet.script = acts.succeed
    for name in names:
        jobs.patch(name, suspend=False)
    time.sleep(OUTAGE_S)
    moment[0] = "resume"
    down.clear()
    all_are("Completed")
    eventually("their Jobs are deleted", lambda: not jobs.children(), 60)
    assert [history(jobs.status(name)) for name in names] == [DONE] * len(names)
    writes = Counter(f"{phase_of(m, p)} {code}" for m, p, code in proxy.writes)
    assert writes["POST jobs 201"] == writes["DELETE jobs 200"] == 3 * len(names)
    assert writes["POST services 201"] == len(names)
    assert len(kubelet.of("prepare")) == len(kubelet.of("publish")) == len(names)
    assert len(kubelet.of("train")) == 2 * 2 * len(names)
    assert kubelet.overlaps == set()
    expected = [("life", "POST jobs"), ("life", "POST services"), ("life", "PATCH jobs"), ("life", "status"),
                ("suspend", "PATCH jobs"), ("suspend", "status"), ("resume", "PATCH jobs"), ("resume", "DELETE jobs")]  # fmt: skip
    assert {cell: given[cell] for cell in expected} == dict.fromkeys(expected, len(FAULTS))
    assert operator.get("/healthz") == "ok"
    assert operator.terminate() == 0


def test_every_fault_of_lists_and_watches(
    jobs: Any, kubelet: Any, acts: Any, namespace: str, start_operator: Any, proxy: Proxy
) -> None:
    """Each fault meets the first three requests after all watches were cut, while a job is created."""
    waiting: list[Fault] = []
    proxy.rule = lambda method, path: waiting.pop() if waiting and method in ("GET", "WATCH") else None
    operator = start_operator(proxy.kubeconfig, FINETUNE_NAMESPACES=namespace, FINETUNE_RESYNC_SECONDS="5")
    for fault in FAULTS:
        waiting.extend([FAULTS[fault]] * 3)
        proxy.cut_watches()
        jobs.create(f"job-{fault}")
        time.sleep(1)
    for fault in FAULTS:
        assert history(jobs.wait("Completed", f"job-{fault}", seconds=60)) == DONE
    assert len(jobs.children()) == 3 * len(FAULTS)
    assert len(kubelet.seen) == 3 * len(FAULTS)
    assert operator.get("/healthz") == "ok"
    assert operator.terminate() == 0
