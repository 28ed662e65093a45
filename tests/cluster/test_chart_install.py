"""The chart on a real API server: install, upgrade, uninstall, install again; rights as they were granted.

A cluster of its own, since the CustomResourceDefinition belongs to the release here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.control

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "finetune-operator"
SYSTEM = "finetune-system"
ACCOUNT = f"system:serviceaccount:{SYSTEM}:finetune-operator"
JOB: dict[str, Any] = {
    "apiVersion": "finetune.dev/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "bot", "namespace": "default"},
    "spec": {
        "model": {"uri": "pvc://models/base"},
        "method": {"type": "lora"},
        "data": {"train": [{"uri": "pvc://datasets/bot.jsonl"}]},
        "compute": {"device": "cpu"},
        "workspace": {"uri": "pvc://scratch"},
        "output": {"uri": "pvc://models/bot"},
    },
}


class Tools:
    """helm and kubectl on the test's cluster."""

    def __init__(self, folder: str, kubeconfig: str) -> None:
        self.folder = Path(folder)
        self.environment = {**os.environ, "KUBECONFIG": kubeconfig}

    def run(self, program: str, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        done = subprocess.run(
            [str(self.folder / program), *arguments],
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert not check or done.returncode == 0, f"{program} {' '.join(arguments)}: {done.stderr}"
        return done.stdout.strip()

    def helm(self, verb: str, *arguments: str) -> str:
        return self.run("helm", verb, "finetune-operator", *arguments, "--namespace", SYSTEM)

    def kubectl(self, *arguments: str, **options: Any) -> str:
        return self.run("kubectl", *arguments, **options)

    def may(self, verb: str, resource: str, *arguments: str, account: str = ACCOUNT) -> bool:
        resource, _, part = resource.partition("/")
        subresource = [f"--subresource={part}"] if part else []
        command = ("auth", "can-i", verb, resource, *subresource, "--as", account, *arguments)
        return self.kubectl(*command, check=False) == "yes"


def localcluster(*arguments: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key not in ("CLUSTER", "KUBECONFIG")}
    command = [sys.executable, "-m", "localcluster", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()


@pytest.fixture(scope="module")
def tools() -> Iterator[Tools]:
    name = f"t{uuid.uuid4().hex[:6]}"
    localcluster("up", "--size", "control", "--name", name)
    try:
        yield Tools(localcluster("tools"), localcluster("kubeconfig", "--name", name))
    finally:
        localcluster("down", "--name", name)


def test_jobs_outlive_upgrade_and_uninstall(tools: Tools) -> None:
    tools.helm("install", str(CHART), "--create-namespace")
    tools.kubectl("wait", "--for=condition=Established", "crd/finetunejobs.finetune.dev", "--timeout=30s")
    tools.kubectl("apply", "-f", "-", stdin=json.dumps(JOB))
    uid = tools.kubectl("get", "ftj/bot", "-o", "jsonpath={.metadata.uid}")

    tools.helm("upgrade", str(CHART), "--set", "config.logLevel=debug")
    assert tools.kubectl("get", "ftj/bot", "-o", "jsonpath={.metadata.uid},{.metadata.generation}") == f"{uid},1"

    tools.helm("uninstall")
    assert tools.kubectl("get", "deployments", "-n", SYSTEM, "-o", "name") == ""
    assert tools.kubectl("get", "ftj/bot", "-o", "jsonpath={.metadata.uid}") == uid

    tools.helm("install", str(CHART))
    assert tools.kubectl("get", "ftj/bot", "-o", "jsonpath={.metadata.uid}") == uid
    assert tools.kubectl("get", "deployments", "-n", SYSTEM, "-o", "name") == "deployment.apps/finetune-operator"


def test_rights_as_granted(tools: Tools, eventually: Callable[..., Any]) -> None:
    """What the operator and its users may do, as the API server itself decides."""
    tools.helm("upgrade", str(CHART), "--install", "--create-namespace")
    everywhere = ["--all-namespaces"]
    for verb, resource in (
        ("list", "finetunejobs.finetune.dev"),
        ("patch", "finetunejobs.finetune.dev/status"),
        ("create", "jobs.batch"),
        ("get", "pods"),
        ("list", "pods"),
        ("get", "nodes"),
        ("create", "events.events.k8s.io"),
    ):
        assert tools.may(verb, resource, *everywhere), (verb, resource)
    for verb, resource in (
        ("get", "secrets"),
        ("list", "secrets"),
        ("patch", "finetunejobs.finetune.dev"),
        ("create", "pods"),
        ("create", "pods/exec"),
        ("delete", "persistentvolumeclaims"),
        ("list", "nodes"),
        ("create", "leases.coordination.k8s.io"),
        ("create", "clusterrolebindings"),
        ("*", "*"),
    ):
        assert not tools.may(verb, resource, *everywhere), (verb, resource)
    lease = "leases.coordination.k8s.io/finetune-operator"
    for name, allowed in ((lease, True), (f"{lease}-of-another", False)):
        command = ("auth", "can-i", "update", name, "--as", ACCOUNT, "-n", SYSTEM)
        assert (tools.kubectl(*command, check=False) == "yes") is allowed, name
    for person, role in (("reader", "view"), ("editor", "edit")):
        binding = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": person, "namespace": "default"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "User", "name": person, "apiGroup": "rbac.authorization.k8s.io"}],
        }
        tools.kubectl("apply", "-f", "-", stdin=json.dumps(binding))
    # The controller that aggregates roles needs a moment.
    eventually("view reads jobs", lambda: tools.may("get", "finetunejobs.finetune.dev", account="reader"))
    eventually("edit makes jobs", lambda: tools.may("create", "finetunejobs.finetune.dev", account="editor"))
    assert not tools.may("create", "finetunejobs.finetune.dev", account="reader")
    assert not tools.may("patch", "finetunejobs.finetune.dev/status", account="editor")


def test_a_namespaced_operator_has_rights_nowhere_else(tools: Tools) -> None:
    for namespace in ("team-a", "team-b"):
        tools.kubectl("create", "namespace", namespace)
    tools.helm("upgrade", str(CHART), "--install", "--create-namespace", "--set", "watchNamespaces={team-a}")
    assert tools.may("create", "jobs.batch", "-n", "team-a")
    assert not tools.may("create", "jobs.batch", "-n", "team-b")
    assert not tools.may("get", "nodes", "--all-namespaces")
    assert not tools.may("list", "finetunejobs.finetune.dev", "--all-namespaces")
