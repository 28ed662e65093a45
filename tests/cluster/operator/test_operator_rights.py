"""The operator with the rights that the chart gives it: all that it needs, and none that it does not use."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from finetune_operator.settings import Settings

from .proxy import Fault, Proxy

pytestmark = pytest.mark.control

REPOSITORY = Path(__file__).resolve().parents[3]
APIS = {
    "ServiceAccount": "/api/v1/namespaces/{ns}/serviceaccounts",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "Role": "/apis/rbac.authorization.k8s.io/v1/namespaces/{ns}/roles",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/namespaces/{ns}/rolebindings",
}
Right = tuple[str, str]
"""A verb, and a resource with its group."""

NOT_REQUESTED: dict[Right, str] = {
    ("update", "finetune.dev/finetunejobs/finalizers"): "asked by the admission plugin for owner references",
    ("get", "/nodes"): "needed when a pod is silent for minutes",
}
ELECTS_A_LEADER = any(name.startswith(("leader", "lease")) for name in Settings.__dataclass_fields__)
_VERBS = {"POST": "create", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}
_PATH = re.compile(r"/apis?/(?:([^/]+\.[^/]+|batch)/)?v[^/]+/(?:namespaces/[^/]+/)?([^/]+)(?:/([^/]+)(?:/([^/]+))?)?$")


def rights_of(method: str, path: str, watch: bool) -> set[Right]:
    """What a request needs."""
    match = _PATH.match(path)
    if match is None:  # discovery
        return set()
    group, resource, name, part = match.groups()
    full = f"{group or ''}/{resource}" + (f"/{part}" if part else "")
    return {(_VERBS.get(method) or ("get" if name else "watch" if watch else "list"), full)}


def rights_in(role: dict[str, Any]) -> set[Right]:
    return {
        (verb, f"{group}/{resource}")
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


class Blinder(Proxy):
    """Records the rights that requests need. While `blind` is set, no watch can resume: what happens meanwhile is missing in the
    list that follows. While `mute` is set, watches are open and deliver nothing."""

    def __init__(self, api: Any, kubeconfig: Path) -> None:
        super().__init__(api, kubeconfig)
        self.blind, self.mute = threading.Event(), threading.Event()
        self.used = set[Right]()

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        watch = "watch=true" in request.query_string
        self.used |= rights_of(request.method, request.path, watch)
        if self.blind.is_set() and watch:
            return web.json_response({"type": "ERROR", "object": {"kind": "Status", "code": 410}})
        return await super()._pass(request)


@pytest.fixture
def proxy(api: Any, tmp_path: Path) -> Iterator[Blinder]:
    proxy = Blinder(api, tmp_path / "kubeconfig")
    proxy.start()
    yield proxy
    proxy.stop()


@pytest.fixture(params=["cluster", "namespace"])
def scope(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def account(api: Any, namespace: str, tools: Path, scope: str) -> Iterator[tuple[str, set[Right]]]:
    """A token of the chart's service account, and the rights that the chart grants it."""
    values = ["--set", f"watchNamespaces={{{namespace}}}"] if scope == "namespace" else []
    values += ["--set", "rbac.aggregateRoles=false", "--set", "fullnameOverride=operator"]
    chart = str(REPOSITORY / "charts" / "finetune-operator")
    rendered = subprocess.run(
        [str(tools / "helm"), "template", f"r-{namespace}", chart, "-n", namespace, *values],
        capture_output=True,
        text=True,
        check=True,
    )
    made, granted = [], set[Right]()
    for body in yaml.safe_load_all(rendered.stdout):
        if body and body["kind"] in APIS:
            path = APIS[body["kind"]].format(ns=body["metadata"].get("namespace", namespace))
            api.post(path, body)
            made.append(f"{path}/{body['metadata']['name']}")
            granted |= rights_in(body) if "rules" in body else set()
    token = api.post(f"/api/v1/namespaces/{namespace}/serviceaccounts/operator/token", {"spec": {}})
    yield token["status"]["token"], granted
    for path in made:
        api.delete(path)


def test_every_right_of_the_chart_is_used_and_no_other_is_needed(
    jobs: Any,
    kubelet: Any,
    acts: Any,
    namespace: str,
    start_operator: Any,
    proxy: Blinder,
    account: tuple[str, set[Right]],
    scope: str,
) -> None:
    """Two nodes (reads the claim), a slow start (reads warnings), a retry, a clean-up, children whose creation got no answer, and
    changes that the watch missed."""
    token, granted = account
    config = yaml.safe_load(proxy.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": token}
    proxy.kubeconfig.write_text(yaml.safe_dump(config))
    to_lose = {"services", "jobs"}

    def rule(method: str, path: str) -> Fault | None:
        resource = path.rpartition("/")[2]
        if method == "POST" and resource in to_lose:
            to_lose.remove(resource)
            return Fault("lose")
        if proxy.blind.is_set() and method == "GET":
            return Fault("answer", 503)
        return Fault("mute") if proxy.mute.is_set() and method == "WATCH" else None

    slow = True

    def script(pod: Any) -> Any:
        labels = pod["metadata"]["labels"]
        if labels["finetune.dev/stage"] == "prepare" and slow:
            return acts.Act(waiting=("ContainerCreating", ""))
        if (labels["finetune.dev/stage"], labels["finetune.dev/attempt"]) == ("train", "1"):
            return acts.Act(1, "crash")
        return acts.succeed(pod)

    proxy.rule, kubelet.script = rule, script
    operator = start_operator(
        proxy.kubeconfig,
        FINETUNE_NAMESPACES=namespace if scope == "namespace" else "",
        FINETUNE_RESYNC_SECONDS="2",
        FINETUNE_LEADER_ELECTION="true",
        FINETUNE_LEASE="operator",
        POD_NAME="operator-0",
        POD_NAMESPACE=namespace,
    )
    jobs.create(compute={"device": "cpu", "nodes": 2}, ttlSecondsAfterFinished=0)
    jobs.until("the warnings of the slow pod are read", lambda: ("list", "events.k8s.io/events") in proxy.used)
    slow = False
    jobs.wait("Completed")
    jobs.until("cleaned up", lambda: not jobs.children())

    kubelet.script = acts.hold_training
    jobs.create("missed")
    jobs.create("gone", suspend=True)
    jobs.wait("Training", "missed")
    jobs.wait("Suspended", "gone")
    proxy.blind.set()
    proxy.cut_watches()
    time.sleep(0.5)
    (train,) = [job["metadata"]["name"] for job in jobs.children() if "-train-" in job["metadata"]["name"]]
    jobs.delete("gone")
    jobs.api.delete(f"/apis/batch/v1/namespaces/{namespace}/jobs/{train}")
    pods = f"/api/v1/namespaces/{namespace}/pods"
    jobs.until("its pod is gone", lambda: not any("-train-" in p["metadata"]["name"] for p in jobs.api.items(pods)))
    proxy.mute.set()
    proxy.blind.clear()
    for kind in ("FineTuneJob", "Job", "Pod"):
        repaired = lambda k=kind: operator.metric("finetune_cache_repairs_total", resource=k)  # noqa: E731
        jobs.until(f"the cache of kind {kind} is repaired", repaired)

    def missed() -> bool:
        for path in (f"{jobs.path}/missed", f"{pods}/{jobs.api.items(pods)[0]['metadata']['name']}"):
            jobs.api.merge(path, {"metadata": {"annotations": {"at": str(time.monotonic())}}})
        return {("get", "finetune.dev/finetunejobs"), ("get", "/pods")} <= proxy.used

    kubelet.script = acts.hold_training
    jobs.until("what the watches missed is read", missed)
    kubelet.script = acts.succeed
    proxy.mute.clear()
    proxy.cut_watches()
    jobs.wait("Completed", "missed")
    jobs.until("events", lambda: len(jobs.events()) >= 8)
    assert operator.metric("rest_client_requests_total", code="403") == 0
    assert operator.terminate() == 0

    optional = set(NOT_REQUESTED) | (set() if ELECTS_A_LEADER else {right for right in granted if "leases" in right[1]})
    assert granted - proxy.used == optional & granted
    assert proxy.used <= granted
