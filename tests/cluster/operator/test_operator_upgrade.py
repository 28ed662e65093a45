"""Upgrade from the version before the operator's state moved to status.state, and the way back, with jobs in every phase."""

from __future__ import annotations

import io
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from .attempts import DONE, history

pytestmark = pytest.mark.control

BEFORE = "6f28127"
REPOSITORY = Path(__file__).resolve().parents[3]
GANG = {"device": "cpu", "nodes": 2}
ADMISSION = "/apis/admissionregistration.k8s.io/v1"

PREPARED = ("prepare", 1, "Succeeded")
RETRIED = [PREPARED, ("train", 1, "Failed"), ("train", 2, "Succeeded"), ("publish", 1, "Succeeded")]

PHASES: dict[str, tuple[str, dict[str, Any]]] = {
    "preparing": ("Preparing", {}),
    "approval": ("AwaitingApproval", {"budget": {"approval": "Manual"}}),
    "queued": ("Queued", {}),
    "training": ("Training", {"compute": GANG}),
    "retried": ("Training", {"compute": GANG, "retry": {"infra": 1}}),
    "suspended": ("Suspended", {"compute": GANG}),
    "spent": ("Suspended", {"compute": GANG}),
    "publishing": ("Publishing", {}),
    "completed": ("Completed", {}),
    "failed": ("Failed", {}),
}
HELD = {"preparing": "prepare", "training": "train", "suspended": "train", "spent": "train", "publishing": "publish"}


@dataclass
class Fleet:
    """A job in every phase."""

    api: Any
    jobs: Any
    kubelet: Any
    acts: Any
    namespace: str
    until: Callable[..., Any]

    def create(self) -> None:
        self.kubelet.script = self._hold
        for name, (_, spec) in PHASES.items():
            self.jobs.create(name, **spec)
        for name in ("training", "suspended", "spent", "retried"):
            self.until(f"{name} runs", lambda n=name: self._runs(n))
        self.jobs.patch("suspended", suspend=True)
        time.sleep(1.1)
        self.jobs.patch("spent", budget={"maxDuration": "1s"})
        for name, (phase, _) in PHASES.items():
            self.until(f"{name} is {phase}", lambda n=name, p=phase: self.jobs.status(n).get("phase") == p)
        self.until("it waits for its queue", self._queued_job)

    def _hold(self, pod: Any) -> Any:
        labels = pod["metadata"]["labels"]
        job, stage, attempt = (labels[f"finetune.dev/{name}"] for name in ("job", "stage", "attempt"))
        if job == "failed":
            return self.acts.Act(3, self.acts.said(stage, "failed", 3, cause={"code": "InvalidData", "message": "no"}))
        if job == "retried" and stage == "train":
            return self.acts.Act(1, "RuntimeError: once") if attempt == "1" else self.acts.Act(hold=True)
        return self.acts.Act(hold=True) if HELD.get(job) == stage else self._succeed(pod)

    def _succeed(self, pod: Any) -> Any:
        if pod["metadata"]["labels"]["finetune.dev/stage"] != "prepare":
            return self.acts.succeed(pod)
        words = self.acts.said("prepare", data={"rows": 80}, plan={"steps": 15}, facts=self.acts.FACTS, decided={})
        return self.acts.Act(0, words)

    def _runs(self, name: str) -> bool:
        status = self.jobs.status(name)
        number = 2 if name == "retried" else 1
        running = self.jobs.condition("Running", name).get("status") == "True"
        return running and ("train", number, "Running") in history(status)

    def _queued_job(self) -> Any:
        labels = {"finetune.dev/job": "queued", "finetune.dev/stage": "train"}
        found = [job for job in self.jobs.children() if labels.items() <= job["metadata"]["labels"].items()]
        return found[0] if found else None

    def children(self) -> dict[str, str]:
        """uids of everything that no version may delete or replace: by kind and name. Pods only while they run."""
        found = {}
        for kind in ("jobs", "services", "configmaps", "pods"):
            for child in self.jobs.children(kind):
                if kind != "pods" or child["status"]["phase"] in ("Pending", "Running"):
                    found[f"{kind}/{child['metadata']['name']}"] = child["metadata"]["uid"]
        return found

    def standing(self) -> dict[str, Any]:
        return {name: (s.get("phase"), history(s)) for name in PHASES for s in [self.jobs.status(name)]}

    def statuses(self) -> dict[str, dict[str, Any]]:
        return {name: self.jobs.status(name) for name in PHASES}

    def used(self, name: str) -> int:
        """Seconds of training, by either version."""
        status = self.jobs.status(name)
        return int(status.get("usage", status).get("trainSeconds", 0))

    def reconcile_all(self, operator: Any, note: str) -> None:
        """Twice, with time for what is delayed."""
        for number in range(2):
            before = operator.metric("controller_runtime_reconcile_total")
            for name in PHASES:
                patch = {"metadata": {"annotations": {"touched": f"{note}-{number}"}}}
                self.api.merge(f"{self.jobs.path}/{name}", patch)
            if before or number:
                self.until(
                    "all were reconciled",
                    lambda b=before: operator.metric("controller_runtime_reconcile_total") >= b + len(PHASES),
                )
            time.sleep(2)

    def finish(self) -> None:
        self.kubelet.script = lambda pod: (
            self._hold(pod) if pod["metadata"]["labels"]["finetune.dev/job"] == "failed" else self._succeed(pod)
        )
        self.jobs.patch("approval", budget={"approvedPlan": self.jobs.status("approval")["plan"]["digest"]})
        self.jobs.patch("suspended", suspend=False)
        self.jobs.patch("spent", budget={"maxDuration": "1h"})
        queued = self._queued_job()["metadata"]["name"]  # as the queue does
        self.api.merge(f"/apis/batch/v1/namespaces/{self.namespace}/jobs/{queued}", {"spec": {"suspend": False}})
        for name in PHASES:
            if name != "failed":
                self.jobs.wait("Completed", name, seconds=90)
        assert self.jobs.status("failed")["phase"] == "Failed"


@pytest.fixture
def fleet(api: Any, jobs: Any, kubelet: Any, acts: Any, namespace: str, eventually: Any) -> Iterator[Fleet]:
    """The training of the job `queued` gets a queue's label when it is created, as Kueue's webhook gives it."""
    name = f"queue-{namespace}"
    patch = '[JSONPatch{op: "add", path: "/metadata/labels/kueue.x-k8s.io~1queue-name", value: "team"}]'
    labels = "object.metadata.?labels"
    policy = {
        "metadata": {"name": name},
        "spec": {
            "failurePolicy": "Fail",
            "reinvocationPolicy": "Never",
            "matchConstraints": {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                "resourceRules": [
                    {"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["jobs"]}
                ],
            },
            "matchConditions": [
                {"name": "job", "expression": f"{labels}['finetune.dev/job'].orValue('') == 'queued'"},
                {"name": "stage", "expression": f"{labels}['finetune.dev/stage'].orValue('') == 'train'"},
            ],
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": patch}}],
        },
    }
    api.post(f"{ADMISSION}/mutatingadmissionpolicies", policy)
    binding = {"metadata": {"name": name}, "spec": {"policyName": name}}
    api.post(f"{ADMISSION}/mutatingadmissionpolicybindings", binding)
    pod = {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}
    probe = {
        "metadata": {"name": "probe", "labels": {"finetune.dev/job": "queued", "finetune.dev/stage": "train"}},
        "spec": {"suspend": True, "template": pod},
    }
    path = f"/apis/batch/v1/namespaces/{namespace}/jobs"
    eventually(
        "the policy is in force",
        lambda: "kueue.x-k8s.io/queue-name" in api.post(path, probe, dryRun="All")["metadata"]["labels"],
    )
    yield Fleet(api, jobs, kubelet, acts, namespace, eventually)
    api.delete(f"{ADMISSION}/mutatingadmissionpolicybindings/{name}")
    api.delete(f"{ADMISSION}/mutatingadmissionpolicies/{name}")


@dataclass
class Versions:
    """Installs one version or the other: its CRD and its operator."""

    api: Any
    namespace: str
    start: Any
    folder: Path

    def old(self) -> Any:
        self._apply(self.folder)
        path = f"{self.folder / 'operator'}:{self.folder / 'crds'}"
        return self.start(self.api.kubeconfig, PYTHONPATH=path, **self._settings())

    def new(self) -> Any:
        self._apply(REPOSITORY)
        return self.start(self.api.kubeconfig, **self._settings())

    def _settings(self) -> dict[str, str]:
        return {"FINETUNE_NAMESPACES": self.namespace}

    def _apply(self, root: Path) -> None:
        crd = yaml.safe_load((root / "crds" / "finetunejobs.yaml").read_text())
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd['metadata']['name']}"
        self.api.call("PATCH", path, crd, "application/apply-patch+yaml", fieldManager="tests", force="true")
        time.sleep(1.5)  # until it is served


@pytest.fixture
def versions(api: Any, namespace: str, start_operator: Any, tmp_path: Path) -> Iterator[Versions]:
    archive = subprocess.run(
        ["git", "-C", str(REPOSITORY), "archive", BEFORE, "operator", "crds"], capture_output=True, check=False
    )
    if archive.returncode != 0:
        pytest.skip(f"commit {BEFORE} is not in this clone: {archive.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(tmp_path / "before", filter="data")
    versions = Versions(api, namespace, start_operator, tmp_path / "before")
    yield versions
    versions._apply(REPOSITORY)


def test_upgrade_with_jobs_in_every_phase(fleet: Fleet, versions: Versions) -> None:
    began = time.monotonic()
    operator = versions.old()
    fleet.create()
    children, standing = fleet.children(), fleet.standing()
    used = fleet.used("spent")
    assert operator.terminate() == 0

    operator = versions.new()
    fleet.reconcile_all(operator, "new")
    assert fleet.children() == children, "nothing is deleted or replaced"
    assert fleet.standing() == standing
    fleet.finish()
    for name in PHASES.keys() - {"failed", "retried"}:
        assert history(fleet.jobs.status(name)) == DONE, name
    first = standing["retried"][1][:2]  # the old version takes a failed rank for an evicted one at times
    assert history(fleet.jobs.status("retried")) == [*first, *RETRIED[2:]]
    assert used <= fleet.used("spent") <= time.monotonic() - began
    assert fleet.used("training") <= time.monotonic() - began
    assert operator.terminate() == 0


def test_rollback_and_upgrade_again_with_jobs_in_every_phase(fleet: Fleet, versions: Versions) -> None:
    """The old CRD prunes status.state, so the old operator knows no image for jobs that name none: it waits, and keeps
    everything. A job between prepare and train repeats prepare, which finds its sealed files."""
    operator = versions.new()
    fleet.create()
    children, standing, statuses = fleet.children(), fleet.standing(), fleet.statuses()
    used = fleet.used("spent")
    assert operator.terminate() == 0

    operator = versions.old()
    fleet.reconcile_all(operator, "old")
    assert fleet.children() == children, "nothing is deleted or replaced"
    for name, status in fleet.statuses().items():
        assert history(status) == standing[name][1]
        assert statuses[name].keys() - status.keys() <= {"state", "usage"}
        if standing[name][0] not in ("Completed", "Failed"):
            assert status["reason"] == "NoTrainerImage"
    assert fleet.used("spent") >= used
    assert operator.terminate() == 0

    operator = versions.new()
    fleet.reconcile_all(operator, "new")
    assert fleet.children().items() >= children.items(), "nothing is deleted or replaced"
    repeated = [("prepare", 1, "Stopped"), ("prepare", 2, "Succeeded")]
    assert fleet.standing() == standing | {"approval": ("AwaitingApproval", repeated)}
    fleet.finish()
    for name in PHASES.keys() - {"failed", "approval"}:
        assert history(fleet.jobs.status(name)) == (RETRIED if name == "retried" else DONE), name
    assert history(fleet.jobs.status("approval")) == [*repeated, *DONE[1:]]
    assert operator.terminate() == 0
