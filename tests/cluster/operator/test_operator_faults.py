"""Crashes and bad answers: a proxy stands between the operator and the real API server, and does what a test says."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from .attempts import DONE, history
from .proxy import Fault, Proxy

pytestmark = pytest.mark.control


def test_watches_that_break_and_lists_that_are_missed(
    jobs: Any,
    kubelet: Any,
    acts: Any,
    namespace: str,
    start_operator: Any,
    proxy: Proxy,
    eventually: Callable[..., Any],
) -> None:
    """Deletions while no watch stood are found by the sweep, which kopf's own new list would not tell of."""
    blind = threading.Event()
    proxy.rule = lambda method, path: Fault("answer", 503) if blind.is_set() and method in ("GET", "WATCH") else None
    operator = start_operator(proxy.kubeconfig, FINETUNE_NAMESPACES=namespace, FINETUNE_RESYNC_SECONDS="3")
    kubelet.script = acts.hold_training
    jobs.create()
    jobs.wait("Training")
    blind.set()
    proxy.cut_watches()
    time.sleep(0.5)
    train = next(j for j in jobs.children() if "train" in j["metadata"]["name"])["metadata"]["name"]
    jobs.api.delete(f"/apis/batch/v1/namespaces/{namespace}/jobs/{train}")
    eventually("the Job is gone", lambda: train not in [j["metadata"]["name"] for j in jobs.children()])
    eventually("so are its pods", lambda: not any(train in p["metadata"]["name"] for p in jobs.children("pods")))
    # Nothing of it is left in the log of watches that start from now on.
    kubelet.script = acts.succeed
    blind.clear()
    status = jobs.wait("Completed")
    assert history(status) == [DONE[0], ("train", 1, "Evicted"), ("train", 2, "Succeeded"), DONE[2]]
    assert operator.get("/healthz") == "ok"
    assert operator.terminate() == 0


def test_sigterm_lets_writes_in_flight_end(
    jobs: Any, kubelet: Any, namespace: str, start_operator: Any, proxy: Proxy, eventually: Callable[..., Any]
) -> None:
    """Exit 0, a write that was under way done, and its successor goes on."""
    slow = threading.Event()

    def rule(method: str, path: str) -> Fault | None:
        if method == "POST" and path.endswith("/jobs"):
            slow.set()
            return Fault("slow", seconds=2)
        return None

    proxy.rule = rule
    operator = start_operator(proxy.kubeconfig, FINETUNE_NAMESPACES=namespace)
    jobs.create()
    assert slow.wait(60)
    assert operator.terminate() == 0
    assert jobs.status()["phase"] == "Preparing", "the status followed the write"
    assert len(jobs.children()) == 1
    proxy.rule = lambda method, path: None
    operator = start_operator(proxy.kubeconfig, FINETUNE_NAMESPACES=namespace)
    assert history(jobs.wait("Completed")) == DONE
    assert operator.terminate() == 0


def test_a_job_is_looked_at_again_after_a_restart_without_a_write(
    jobs: Any, kubelet: Any, acts: Any, namespace: str, start_operator: Any, proxy: Proxy
) -> None:
    """Restarting the operator, over a list of running and finished jobs, writes nothing."""
    kubelet.script = acts.hold_training
    settings = {"FINETUNE_NAMESPACES": namespace, "FINETUNE_POLL_SECONDS": "60"}
    operator = start_operator(proxy.kubeconfig, **settings)
    for name in ("one", "two"):
        jobs.create(name, compute={"device": "cpu", "nodes": 2})
    for name in ("one", "two"):
        jobs.wait("Training", name)
    assert operator.terminate() == 0
    proxy.writes.clear()
    operator = start_operator(proxy.kubeconfig, **settings)
    time.sleep(2)
    assert proxy.writes == []
    assert [line["msg"] for line in operator.lines()] == ["started"]
    assert operator.terminate() == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"FINETUNE_DEFAULTS": "/nowhere.json"}, "FINETUNE_DEFAULTS names /nowhere.json"),
        ({"FINETUNE_WORKERS": "many"}, "FINETUNE_WORKERS is 'many'"),
        ({"FINETUNE_HTTP": "8080x"}, "HOST:PORT"),
        ({"FINETUNE_LOG_FORMAT": "xml"}, "json, text"),
        ({"KUBECONFIG": "/nowhere"}, "KUBECONFIG"),
    ],
)
def test_wrong_settings_end_the_start_with_one_sentence(
    api: Any, start_operator: Any, settings: dict[str, str], words: str
) -> None:
    operator = start_operator(api.kubeconfig, wait=False, **settings)
    assert operator.process.wait(20) == 2
    said = operator.log.read_text().strip().splitlines()
    assert len(said) == 1
    assert words in said[0]


def test_health_and_metrics(api: Any, start_operator: Any, namespace: str) -> None:
    operator = start_operator(api.kubeconfig, FINETUNE_NAMESPACES=namespace)
    assert operator.get("/healthz") == "ok"
    text = operator.get("/metrics")
    for name in (
        "controller_runtime_reconcile_total",
        "controller_runtime_active_workers",
        "workqueue_depth",
        "workqueue_queue_duration_seconds",
        "rest_client_requests_total",
        "finetune_jobs",
        "finetune_event_loop_lag_seconds",
        "finetune_build_info",
    ):
        assert name in text, name
    assert json.loads(operator.log.read_text().splitlines()[0])["msg"] == "started"
    assert operator.terminate() == 0
