"""What one namespace, one object or the API server may do to the operator: nothing that others notice, and never its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from .proxy import Fault, Proxy

pytestmark = pytest.mark.control

RBAC = "/apis/rbac.authorization.k8s.io/v1"


@pytest.fixture
def limited(api: Any, namespace: str, tmp_path: Path) -> Callable[..., Path]:
    """Give an account of the test's namespace all rights in these namespaces only; returns its kubeconfig."""
    api.post(f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": "operator"}})

    def give(*namespaces: str) -> Path:
        for where in namespaces:
            rules = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]
            subject = {"kind": "ServiceAccount", "name": "operator", "namespace": namespace}
            role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "operator"}
            api.post(f"{RBAC}/namespaces/{where}/roles", {"metadata": {"name": "operator"}, "rules": rules})
            binding = {"metadata": {"name": "operator"}, "roleRef": role, "subjects": [subject]}
            api.post(f"{RBAC}/namespaces/{where}/rolebindings", binding)
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/operator/token"
        config = yaml.safe_load(api.kubeconfig.read_text())
        config["users"][0]["user"] = {"token": api.post(path, {"spec": {}})["status"]["token"]}
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
        return tmp_path / "kubeconfig"

    return give


def test_a_watched_namespace_that_is_deleted_affects_only_itself(
    api: Any,
    jobs: Any,
    kubelet: Any,
    acts: Any,
    namespace: str,
    start_operator: Any,
    limited: Any,
    eventually: Callable[..., Any],
) -> None:
    other = f"{namespace}-b"
    api.post("/api/v1/namespaces", {"metadata": {"name": other}})
    settings = {"FINETUNE_NAMESPACES": f"{other},{namespace}", "FINETUNE_RESYNC_SECONDS": "1"}
    operator = start_operator(limited(namespace, other), **settings)
    api.delete(f"/api/v1/namespaces/{other}")
    eventually("the namespace is gone", lambda: api.find(f"/api/v1/namespaces/{other}") is None)
    jobs.create("before")
    jobs.wait("Completed", "before")
    assert operator.get("/healthz") == "ok"
    assert operator.terminate() == 0

    operator = start_operator(limited(), **settings)  # its Role went with it: 403 to every list
    jobs.create("after")
    jobs.wait("Completed", "after")
    assert operator.get("/healthz") == "ok"
    refused = [line for line in operator.lines() if line["msg"].startswith("cannot watch")]
    assert len(refused) == 3, "once for each kind"
    assert {line["watched_namespace"] for line in refused} == {other}

    api.post("/api/v1/namespaces", {"metadata": {"name": other}})
    limited(other)
    api.post(f"/apis/finetune.dev/v1alpha1/namespaces/{other}/finetunejobs", acts.manifest("job", other))
    path = f"/apis/finetune.dev/v1alpha1/namespaces/{other}/finetunejobs/job"
    eventually("it is served again", lambda: api.get(path)["status"].get("phase") == "Preparing", 75)
    api.delete(f"/api/v1/namespaces/{other}")
    assert operator.terminate() == 0


def test_jobs_that_are_not_ours_change_no_probe_and_no_watch(
    api: Any, jobs: Any, kubelet: Any, namespace: str, start_operator: Any, eventually: Callable[..., Any]
) -> None:
    """With our label, but without an owner (as after an orphaning deletion), and one of another owner."""
    labels = {"finetune.dev/job-uid": "x", "finetune.dev/job": "x", "app.kubernetes.io/managed-by": "finetune-operator"}
    pod = {"spec": {"restartPolicy": "Never", "containers": [{"name": "trainer", "image": "i"}]}}
    spec = {"suspend": True, "template": pod}
    owner = {"apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "x", "controller": True}
    for name, owners in (("orphan", []), ("foreign", [owner])):
        body = {"metadata": {"name": name, "labels": labels, "ownerReferences": owners}, "spec": spec}
        api.post(f"/apis/batch/v1/namespaces/{namespace}/jobs", body)
    operator = start_operator(api.kubeconfig, FINETUNE_NAMESPACES=namespace, FINETUNE_RESYNC_SECONDS="1")
    lists = lambda: operator.metric("rest_client_requests_total", method="GET", code="200")  # noqa: E731
    before = lists()
    eventually("four comparisons", lambda: lists() >= before + 12)
    assert operator.get("/healthz") == "ok"
    assert operator.metric("finetune_cache_repairs_total") == 0
    assert operator.metric("finetune_watch_restarts_total") == 0
    jobs.create()
    jobs.wait("Completed")
    assert operator.terminate() == 0


def test_a_hanging_webhook_of_one_namespace_does_not_slow_another(
    api: Any, jobs: Any, kubelet: Any, acts: Any, namespace: str, start_operator: Any, proxy: Proxy
) -> None:
    """More jobs than there are workers, each of whose Jobs the API server accepts after ten seconds."""
    slow = f"{namespace}-b"
    api.post("/api/v1/namespaces", {"metadata": {"name": slow}})
    hangs = f"/apis/batch/v1/namespaces/{slow}/jobs"
    proxy.rule = lambda method, path: Fault("slow", seconds=10) if (method, path) == ("POST", hangs) else None
    operator = start_operator(proxy.kubeconfig, FINETUNE_NAMESPACES=f"{namespace},{slow}")
    jobs.claims()
    for number in range(70):
        path = f"/apis/finetune.dev/v1alpha1/namespaces/{slow}/finetunejobs"
        api.post(path, acts.manifest(f"job-{number}", slow))
    time.sleep(1)
    began = time.monotonic()
    jobs.create("quick", claims=False)
    jobs.until("its first Job", jobs.children)
    assert time.monotonic() - began < 7, "it waited for the ten seconds of the others"
    jobs.wait("Completed", "quick")
    # Gauges are brought up to date every five seconds.
    jobs.until("the other namespace still waits", lambda: operator.metric("workqueue_depth") > 0, 15)
    operator.kill()
    api.delete(f"/api/v1/namespaces/{slow}")


def test_a_silent_watch_is_restarted(
    jobs: Any, kubelet: Any, namespace: str, start_operator: Any, proxy: Proxy, eventually: Callable[..., Any]
) -> None:
    """A watch that is open and delivers nothing: resync finds what it missed, and lists and watches that kind again."""
    held: list[float] = []

    def rule(method: str, path: str) -> Fault | None:
        if method == "WATCH" and path.endswith("/finetunejobs") and not held:
            held.append(1)
            return Fault("mute")
        return None

    proxy.rule = rule
    operator = start_operator(proxy.kubeconfig, FINETUNE_NAMESPACES=namespace, FINETUNE_RESYNC_SECONDS="1")
    for number in range(3):
        jobs.create(f"job-{number}")
        jobs.until("noticed", lambda n=number: jobs.status(f"job-{n}").get("phase"))
    restarts = lambda: operator.metric("finetune_watch_restarts_total", resource="FineTuneJob", reason="silent")  # noqa: E731
    eventually("restarted", lambda: restarts() == 1)
    assert operator.get("/healthz") == "ok"
    assert operator.terminate() == 0


def test_the_process_outlives_the_api_server(
    jobs: Any, kubelet: Any, acts: Any, namespace: str, start_operator: Any, proxy: Proxy
) -> None:
    """Gone at the start for longer than a liveness probe waits, and again while a job runs."""
    down = threading.Event()
    proxy.rule = lambda method, path: Fault("drop") if down.is_set() else None
    down.set()
    operator = start_operator(proxy.kubeconfig, wait=False, FINETUNE_NAMESPACES=namespace)
    for _ in range(20):
        time.sleep(1)
        assert not operator.ready()
    assert operator.get("/healthz") == "ok"
    down.clear()
    kubelet.script = acts.hold_training
    jobs.create()
    jobs.wait("Training")
    kubelet.script = acts.succeed
    down.set()
    proxy.cut_watches()
    time.sleep(8)
    assert operator.get("/healthz") == "ok"
    down.clear()
    jobs.wait("Completed", seconds=90)
    assert operator.get("/readyz") == "ok"
    assert operator.terminate() == 0
