"""Two replicas: one leads, the other takes over, and no job notices."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from .attempts import history
from .proxy import Fault, Proxy

pytestmark = pytest.mark.control

LEASE_S = 15.0
SLACK_S = 4.0
"""For a machine on which other tests run."""


@pytest.fixture
def replica(api: Any, namespace: str, start_operator: Any) -> Callable[..., Any]:
    def start(name: str, kubeconfig: Any = None) -> Any:
        settings = {"POD_NAME": name, "POD_NAMESPACE": namespace, "FINETUNE_NAMESPACES": namespace}
        return start_operator(kubeconfig or api.kubeconfig, FINETUNE_LEADER_ELECTION="true", **settings)

    return start


def leads(operator: Any) -> bool:
    return bool(operator.metric("leader_election_master_status") == 1)


def no_double_children(jobs: Any, kubelet: Any, names: list[str]) -> None:
    for name in names:
        book = history(jobs.status(name))
        assert book == [(stage, 1, "Succeeded") for stage in ("prepare", "train", "publish")], name
    pods = Counter(pod["metadata"]["labels"]["job-name"] for pod in kubelet.seen.values())
    assert set(pods.values()) == {1}, pods
    assert len(pods) == 3 * len(names)


def test_a_killed_leader_is_followed_after_its_lease(
    jobs: Any, kubelet: Any, acts: Any, replica: Callable[..., Any], eventually: Callable[..., Any]
) -> None:
    first = replica("first")
    eventually("the first leads", lambda: leads(first))
    second = replica("second")
    assert second.get("/readyz") == "ok", "a standby has its cache"
    names = [f"job-{number}" for number in range(5)]
    kubelet.script = acts.hold_training
    for name in names[:4]:
        jobs.create(name)
    jobs.until("a job trains", lambda: any(jobs.status(name).get("phase") == "Training" for name in names))
    kubelet.script = acts.succeed
    assert not leads(second)
    first.kill()
    began = time.monotonic()
    jobs.create(names[4])
    jobs.until("the standby reconciles", lambda: jobs.status(names[4]).get("phase"))
    assert time.monotonic() - began < LEASE_S + 1 + SLACK_S
    assert leads(second)
    for name in names:
        jobs.wait("Completed", name, seconds=90)
    no_double_children(jobs, kubelet, names)
    assert second.terminate() == 0


def test_a_stopped_leader_hands_over_at_once(
    api: Any, jobs: Any, kubelet: Any, namespace: str, replica: Callable[..., Any], eventually: Callable[..., Any]
) -> None:
    """Three times, with jobs under way."""
    leader = replica("replica-0")
    eventually("it leads", lambda: leads(leader))
    names, took = [], []
    for number in range(1, 4):
        standby = replica(f"replica-{number}")
        names.append(f"job-{number}")
        jobs.create(names[-1])
        leader.process.terminate()
        began = time.monotonic()
        eventually("the standby leads", lambda s=standby: leads(s), 10)
        took.append(time.monotonic() - began)
        assert leader.process.wait(25) == 0
        leader = standby
    assert sorted(took)[1] < LEASE_S / 3, took
    for name in names:
        jobs.wait("Completed", name, seconds=90)
    no_double_children(jobs, kubelet, names)
    assert leader.terminate() == 0
    lease = api.get(f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/finetune-operator")
    assert lease["spec"]["holderIdentity"] == ""
    assert lease["spec"]["leaseTransitions"] == 3


def test_a_leader_that_cannot_renew_becomes_a_standby(
    jobs: Any, kubelet: Any, replica: Callable[..., Any], proxy: Proxy, eventually: Callable[..., Any]
) -> None:
    """Its writes end before the other one's begin; it lives on, and leads again later."""
    cut = False
    proxy.rule = lambda method, path: Fault("slow", seconds=30) if cut and "/leases" in path else None
    first = replica("first", proxy.kubeconfig)
    eventually("the first leads", lambda: leads(first))
    second = replica("second")
    jobs.create("before")
    jobs.wait("Completed", "before")
    cut = True
    eventually("the first leads no longer", lambda: not leads(first), 20)
    proxy.writes.clear()
    eventually("the second leads", lambda: leads(second), 20)
    jobs.create("between")
    jobs.wait("Completed", "between", seconds=90)
    assert [path for _, path, _ in proxy.writes if "/leases" not in path] == []
    assert first.get("/healthz") == first.get("/readyz") == "ok"
    cut = False
    assert second.terminate() == 0
    eventually("the first leads again", lambda: leads(first), 40)
    jobs.create("after")
    jobs.wait("Completed", "after", seconds=90)
    no_double_children(jobs, kubelet, ["before", "between", "after"])
    assert first.terminate() == 0
