"""The operator with the rights that the chart gives it, and not one more."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.control

REPOSITORY = Path(__file__).resolve().parents[3]
APIS = {
    "ServiceAccount": "/api/v1/namespaces/{ns}/serviceaccounts",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "Role": "/apis/rbac.authorization.k8s.io/v1/namespaces/{ns}/roles",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/namespaces/{ns}/rolebindings",
}


@pytest.mark.parametrize("scope", ["cluster", "namespace"])
def test_a_whole_life_with_the_rights_of_the_chart(
    api: Any,
    jobs: Any,
    kubelet: Any,
    acts: Any,
    namespace: str,
    start_operator: Any,
    tools: Path,
    tmp_path: Path,
    scope: str,
) -> None:
    """Two nodes (reads the claim), a slow start (reads warnings), a retry, a clean-up and a rerun: nothing is forbidden."""
    release = f"r-{namespace}"
    values = ["--set", f"watchNamespaces={{{namespace}}}"] if scope == "namespace" else []
    chart = str(REPOSITORY / "charts" / "finetune-operator")
    rendered = subprocess.run(
        [str(tools / "helm"), "template", release, chart, "-n", namespace, *values],
        capture_output=True,
        text=True,
        check=True,
    )
    made, account = [], ""
    for body in yaml.safe_load_all(rendered.stdout):
        if body and body["kind"] in APIS:
            path = APIS[body["kind"]].format(ns=body["metadata"].get("namespace", namespace))
            api.post(path, body)
            made.append(f"{path}/{body['metadata']['name']}")
            account = body["metadata"]["name"] if body["kind"] == "ServiceAccount" else account
    token = api.post(f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token", {"spec": {}})["status"]["token"]
    config = yaml.safe_load(api.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": token}
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(config))

    slow = True

    def script(pod: Any) -> Any:
        labels = pod["metadata"]["labels"]
        if labels["finetune.dev/stage"] == "prepare" and slow:
            return acts.Act(waiting=("ContainerCreating", ""))
        if (labels["finetune.dev/stage"], labels["finetune.dev/attempt"]) == ("train", "1"):
            return acts.Act(1, "crash")
        return acts.succeed(pod)

    kubelet.script = script
    operator = start_operator(kubeconfig, FINETUNE_NAMESPACES=namespace if scope == "namespace" else "")
    try:
        jobs.create(compute={"device": "cpu", "nodes": 2}, ttlSecondsAfterFinished=0)
        before = operator.metric("rest_client_requests_total", code="200", method="GET")
        read = lambda: operator.metric("rest_client_requests_total", code="200", method="GET") > before  # noqa: E731
        jobs.until("the claim and the warnings of the slow pod are read", read)
        slow = False
        jobs.wait("Completed", seconds=40)
        jobs.until("cleaned up", lambda: not jobs.children())
        told = [line for line in operator.lines() if line.get("namespace") == namespace]
        words = ("created", "patched", "deleted", "status")
        assert {(line["level"], line["msg"]) for line in told} <= {("info", word) for word in words}
        assert len(told) > 10
        jobs.until("events", lambda: len(jobs.events()) >= 8)
        assert operator.terminate() == 0
    finally:
        for path in made:
            api.delete(path)
