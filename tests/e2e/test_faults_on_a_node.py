"""Faults on real pods: what can resume does, and what cannot ends with its sentence in status."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.e2e.conftest import SIGNAL

CLAIM = "finetune-quickstart"
FULL = "full-disk"
TWO_SCREENS = 110
"""Lines."""

# Of a test alone: the first one waits for the cluster, whose images may have to be built. That has a limit of its own.
pytestmark = [pytest.mark.node, pytest.mark.timeout(15 * 60, func_only=True)]

Manifest = Callable[..., dict[str, Any]]
Status = dict[str, Any]


class Failure(NamedTuple):
    """What `status.failure` must hold: parts of message and remedy."""

    code: str
    stage: str
    message: tuple[str, ...]
    remedy: tuple[str, ...]


IN_PREPARE = {
    "no-memory": Failure(
        "OutOfMemory", "prepare", ("memory",), ("spec.pods.prepare.resources.limits.memory", "spec.retry.oom is 0")
    ),
    "no-permission": Failure("NotFound", "prepare", ("spec.output.uri", "Permission denied"), ("write permission",)),
    "bad-init": Failure(
        "InitContainerFailed",
        "prepare",
        ("Init container injected", "exit code 42", "no NET_ADMIN"),
        ("kubectl logs", "-c injected"),
    ),
}

IN_TRAINING = {
    "small-disk": Failure(
        "StorageFull",
        "train",
        ("ephemeral local storage usage exceeds", "spec.retry.infra 1 is used up"),
        ("spec.pods.train.resources.limits[ephemeral-storage]",),
    ),
    FULL: Failure("StorageFull", "train", ("No space is left",), ("Enlarge the claim",)),
}

# Added by policies to pods with the label `e2e/inject`, as meshes do: group of containers and what is set.
INJECTED = {
    "sidecar": ("containers", 'name: "proxy", command: ["sleep", "3600"]'),
    "init": (
        "initContainers",
        'name: "injected", command: ["python", "-c", "print(\'no NET_ADMIN\'); raise SystemExit(42)"], '
        'terminationMessagePolicy: "FallbackToLogsOnError"',
    ),
}


def injecting(group: str, settings: str) -> str:
    """A CEL expression that adds a container which the restricted standard allows."""
    kind = f"Object.spec.{group}"
    security = f'{kind}.securityContext{{allowPrivilegeEscalation: false, capabilities: {kind}.securityContext.capabilities{{drop: ["ALL"]}}}}'
    container = f"{kind}{{{settings}, image: object.spec.containers[0].image, securityContext: {security}}}"
    add = f'JSONPatch{{op: "add", path: "/spec/{group}/-", value: {container}}}'
    # A list that is made at once would crash the API server's conversion (Kubernetes 1.36).
    first = 'JSONPatch{op: "add", path: "/spec/initContainers", value: []}, ' if group == "initContainers" else ""
    return f"[{first}{add}]"


@pytest.fixture(scope="module")
def injection(cluster: Any, team: str) -> Iterator[None]:
    """Admission policies that add containers to the pods that ask for it by a label."""
    kind = "MutatingAdmissionPolicy"
    for name, (group, settings) in INJECTED.items():
        change = {"expression": injecting(group, settings)}
        selector = {"matchLabels": {"e2e/inject": name}}
        rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
        spec = {
            "failurePolicy": "Fail",
            "reinvocationPolicy": "Never",
            "matchConstraints": {"resourceRules": [rule], "objectSelector": selector},
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": change}],
        }
        policy = {"apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": f"e2e-{name}"}}
        cluster.apply(policy | {"kind": kind, "spec": spec}, team)
        cluster.apply(policy | {"kind": f"{kind}Binding", "spec": {"policyName": f"e2e-{name}"}}, team)
    probe = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "probe", "labels": {"e2e/inject": "init"}},
        "spec": cluster.get("job/finetune-quickstart-data", team)["spec"]["template"]["spec"],
    }
    create = ("kubectl", "create", "-n", team, "--dry-run=server", "-o", "json", "-f", "-")
    cluster.until("the policies work", lambda: "NET_ADMIN" in cluster.run(*create, stdin=json.dumps(probe)).stdout, 60)
    yield
    for name in INJECTED:
        cluster.kubectl("delete", f"{kind}Binding,{kind}", f"e2e-{name}")


@pytest.fixture(scope="module")
def short(manifest: Manifest) -> Manifest:
    """The quickstart's job in its shortest form, with pods that the node has room for next to others."""

    def job(name: str, **groups: Any) -> dict[str, Any]:
        body = manifest(
            name,
            training={"maxSteps": 20, "globalBatchSize": 16},
            compute={"nodes": 1, "strategy": "ddp"},
            checkpoint={"everySteps": 5},
            evaluation={"metrics": ["loss"]},
            pods={"common": {"resources": {"requests": {"cpu": "100m", "memory": "256Mi"}}}},
        )
        del body["spec"]["training"]["epochs"]
        for group, value in groups.items():
            body["spec"][group] = body["spec"].get(group, {}) | value if isinstance(value, dict) else value
        return body

    return job


def attempts(job: dict[str, Any], stage: str = "train") -> list[dict[str, Any]]:
    return [attempt for attempt in job["status"].get("attempts", []) if attempt["stage"] == stage]


def infra_failures(job: dict[str, Any]) -> int:
    return json.loads(job["status"]["state"]).get("infraFailures", 0)  # type: ignore[no-any-return]


def assert_failed(cluster: Any, namespace: str, name: str, expected: Failure) -> dict[str, Any]:
    job: dict[str, Any] = cluster.until_phase(name, namespace, "Failed")
    failure = job["status"]["failure"]
    assert (failure["code"], failure["stage"]) == (expected.code, expected.stage), failure
    for field, parts in (("message", expected.message), ("remedy", expected.remedy)):
        for part in parts:
            assert part in failure[field], failure
    assert failure["message"] in job["status"]["message"]
    assert {c["type"]: c["status"] for c in job["status"]["conditions"]}["Stalled"] == "True"
    return job


def assert_described(cluster: Any, namespace: str, name: str) -> None:
    """On two screens, for a person who knows only the job's name."""
    failure = cluster.job(name, namespace)["status"]["failure"]
    described = cluster.run("ftj", "describe", name, "-n", namespace).stdout
    assert len(described.splitlines()) <= TWO_SCREENS, described
    for part in (failure["code"], failure["message"]):
        assert " ".join(part.split()) in " ".join(described.split()), described


def test_faults_of_prepare_end_with_their_sentence(cluster: Any, team: str, short: Manifest, injection: None) -> None:
    cluster.in_claim(team, "import os; os.makedirs('locked/inner'); os.chmod('locked', 0)")
    plan, memory = {"mode": "Plan"}, {"limits": {"memory": "90Mi"}, "requests": {"memory": "64Mi"}}
    jobs = {
        "no-memory": {"pods": {"prepare": {"resources": memory}}, "retry": {"oom": 0}},
        "no-permission": {"output": {"uri": f"pvc://{CLAIM}/locked/inner/x"}},
        "bad-init": {"pods": {"common": {"labels": {"e2e/inject": "init"}}}, "retry": {"infra": 0}},
        "sidecar": {"pods": {"common": {"labels": {"e2e/inject": "sidecar"}}}, **plan},
        "lost-image": {"pods": {"common": {"image": "localhost:1/no-such-image:1"}}, **plan},
    }
    for name, groups in jobs.items():
        cluster.apply(short(name, **groups), team)

    def waits() -> Status | None:
        status: Status = cluster.job("lost-image", team)["status"]
        return status if status.get("reason") == "ImagePullFailed" else None

    status = cluster.until("the image is not found", waits, 30)
    assert {c["type"]: c["status"] for c in status["conditions"]}["Stalled"] == "True"
    for part in ("localhost:1/no-such-image:1", "spec.pods.common.image"):
        assert part in status["message"]
    fixed = {"spec": {"pods": {"common": {"image": None}}}}
    cluster.kubectl("patch", "-n", team, "ftj/lost-image", "--type=merge", "-p", json.dumps(fixed))

    for name, failure in IN_PREPARE.items():
        job = assert_failed(cluster, team, name, failure)
        assert len(attempts(job, "prepare")) == 1, "it was tried again"
        assert_described(cluster, team, name)
    for name in ("lost-image", "sidecar"):
        assert cluster.until_phase(name, team, "Completed")["status"]["reason"] == "Planned"


@contextlib.contextmanager
def small_volume(cluster: Any, namespace: str, folder: Path) -> Iterator[None]:
    """A claim on a file system in memory, which a test can fill."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=512m,mode=0777", "finetune-e2e", str(folder)]
    if claim_is_elsewhere(cluster, namespace) or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs a node on this machine, and the right to mount")
    storage, modes = "512Mi", ["ReadWriteMany"]
    reference = {"namespace": namespace, "name": FULL}
    volume = {"capacity": {"storage": storage}, "accessModes": modes, "hostPath": {"path": str(folder)}}
    claim = {"accessModes": modes, "volumeName": FULL, "resources": {"requests": {"storage": storage}}}
    common = {"apiVersion": "v1", "metadata": {"name": FULL}}
    empty = {"storageClassName": ""}
    try:
        cluster.apply(
            common | {"kind": "PersistentVolume", "spec": volume | empty | {"claimRef": reference}}, namespace
        )
        cluster.apply(common | {"kind": "PersistentVolumeClaim", "spec": claim | empty}, namespace)
        yield
    finally:
        cluster.kubectl("delete", "-n", namespace, f"ftj/{FULL}", "--ignore-not-found", "--wait")
        cluster.kubectl("delete", "-n", namespace, f"pvc/{FULL}", f"pv/{FULL}", "--ignore-not-found")
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def claim_is_elsewhere(cluster: Any, namespace: str) -> bool:
    volume = cluster.get(f"pvc/{CLAIM}", namespace)["spec"]["volumeName"]
    path = cluster.get(f"pv/{volume}", namespace)["spec"].get("hostPath", {}).get("path")
    return path is None or not Path(path).exists()


def test_a_disk_that_is_too_small_ends_training_with_its_sentence(
    cluster: Any, team: str, short: Manifest, tmp_path: Path
) -> None:
    # The kubelet looks at disk usage every ten seconds: the training lasts until then.
    disk = {
        "limits": {"cpu": 1, "memory": "4Gi", "ephemeral-storage": "32Ki"},
        "requests": {"ephemeral-storage": "32Ki"},
    }
    body = short("small-disk", training={"maxSteps": 5000}, pods={"train": {"resources": disk}}, retry={"infra": 1})
    cluster.apply(body, team)
    with small_volume(cluster, team, tmp_path):
        workspace = {"uri": f"pvc://{FULL}/work"}
        cluster.apply(short(FULL, training={"maxSteps": 5000}, workspace=workspace, retry={"infra": 0}), team)
        cluster.in_training(team, FULL, "step")
        with contextlib.suppress(OSError), (tmp_path / "filler").open("wb") as filler:
            while filler.write(b"\0" * 2**20):
                pass
        assert_failed(cluster, team, FULL, IN_TRAINING[FULL])
    job = assert_failed(cluster, team, "small-disk", IN_TRAINING["small-disk"])
    assert [attempt["reason"] for attempt in attempts(job)] == ["StorageFull", "StorageFull"]
    assert_described(cluster, team, "small-disk")


def test_a_training_out_of_memory_gets_more_of_it_and_its_output_is_kept_for_it(
    cluster: Any, team: str, short: Manifest
) -> None:
    name = "hungry"
    memory = {"limits": {"memory": "300Mi"}, "requests": {"memory": "300Mi"}}
    cluster.apply(short(name, pods={"train": {"resources": memory}}), team)

    cluster.until(f"{name} is prepared", lambda: attempts(cluster.job(name, team)))
    rival = short("rival", output={"uri": f"pvc://{CLAIM}/models/{name}"})
    cluster.apply(rival, team)
    failure = Failure("OutputTaken", "prepare", (f"{team}/{name}", "reserved"), ("spec.output.uri",))
    assert_failed(cluster, team, "rival", failure)

    job = cluster.until_phase(name, team, "Completed", seconds=400)
    *killed, last = attempts(job)
    assert killed
    for attempt in killed:
        assert attempt["reason"] == "OutOfMemory", attempt
        assert "pods.train.resources.limits.memory is raised from" in attempt["message"], attempt
    assert last["outcome"] == "Succeeded"
    assert job["status"]["progress"]["step"] == 20
    assert infra_failures(job) == 0
    events = cluster.get("events", team, "--field-selector", f"involvedObject.name={name}")["items"]
    assert "MemoryReduced" in {event["reason"] for event in events}


def kill_rank(cluster: Any, namespace: str, pod: str) -> bool:
    cluster.in_pod(namespace, pod, SIGNAL.format(signal="SIGKILL"))
    return True


def kill_container(cluster: Any, namespace: str, pod: str) -> bool:
    """As the kernel or an agent of the node would: from outside, and the first process too."""
    uid = cluster.get(f"pod/{pod}", namespace)["metadata"]["uid"]
    killed = False
    # The first process first: the kernel ends the others with it, before any of them could report one.
    for process in sorted(Path("/proc").glob("[0-9]*"), key=lambda folder: int(folder.name)):
        with contextlib.suppress(OSError):
            of_pod = uid in (process / "cgroup").read_text().replace("_", "-")
            if of_pod and b"finetune_trainer" in (process / "cmdline").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)
                killed = True
    return killed


def evict(cluster: Any, namespace: str, pod: str) -> bool:
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace}}
    path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
    cluster.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))
    return True


def drain(cluster: Any, namespace: str, pod: str) -> bool:
    """Of the pods of this job alone: the only node has the operator too."""
    body = cluster.get(f"pod/{pod}", namespace)
    node, job = body["spec"]["nodeName"], body["metadata"]["labels"]["finetune.dev/job"]
    options = ("--delete-emptydir-data", "--ignore-daemonsets", "--timeout=120s")
    try:
        cluster.kubectl("drain", node, f"--pod-selector=finetune.dev/job={job}", *options)
        waits = lambda: "unschedulable" in cluster.job(job, namespace)["status"]["message"]  # noqa: E731
        cluster.until("its pods wait for a node", waits, 60)
        assert cluster.job(job, namespace)["status"]["reason"] == "Unschedulable"
    finally:
        cluster.kubectl("uncordon", node)
    return True


class Fault(NamedTuple):
    act: Callable[[Any, str, str], bool]
    """On the pod of rank 1. Returns whether it was possible on this cluster."""
    reason: str
    message: str
    counts: bool


FAULTS = (
    Fault(evict, "Preempted", "EvictionByEvictionAPI", counts=False),
    Fault(drain, "Preempted", "EvictionByEvictionAPI", counts=False),
    Fault(kill_rank, "Killed", "Rank 1 was killed with SIGKILL, not for the memory limit", counts=True),
    Fault(kill_container, "Killed", "was killed with SIGKILL, not for its own memory limit", counts=True),
)


def test_a_gang_resumes_after_kills_eviction_and_drain(cluster: Any, team: str, short: Manifest) -> None:
    name, steps = "gang", 150
    slow = {"limits": {"cpu": "500m", "memory": "4Gi"}}
    body = short(name, training={"maxSteps": steps}, compute={"nodes": 2}, pods={"train": {"resources": slow}})
    cluster.apply(body, team)
    counted = 0
    for fault in FAULTS:
        for told in ("lastCheckpoint", "loss"):  # it has resumed, and made a step since
            cluster.in_training(team, name, told)
        before = attempts(cluster.job(name, team))[-1]
        index = "batch.kubernetes.io/job-completion-index"
        pods = {
            p["metadata"]["labels"][index]: p["metadata"]["name"]
            for p in cluster.pods(team, name, "train")
            if p["status"]["phase"] == "Running"
        }
        if not fault.act(cluster, team, pods["1"]):
            continue

        def ended(number: int = before["number"]) -> dict[str, Any] | None:
            job = cluster.job(name, team)
            assert job["status"]["phase"] not in ("Failed", "Completed"), job["status"]
            done = [a for a in attempts(job) if a["number"] == number and a["outcome"] != "Running"]
            return job if done else None

        job = cluster.until(f"the attempt ends after {fault.act.__name__}", ended)
        attempt = next(a for a in attempts(job) if a["number"] == before["number"])
        assert attempt["reason"] == fault.reason, attempt
        assert fault.message in attempt["message"], attempt
        counted += fault.counts
        assert infra_failures(job) == counted, attempt
        if not fault.counts:
            assert attempt["stepsLost"] == 0, attempt
    job = cluster.until_phase(name, team, "Completed", seconds=400)
    assert job["status"]["progress"]["step"] == steps
    resumed = [attempt.get("resumedFromStep") or 0 for attempt in attempts(job)]
    assert resumed == sorted(resumed), resumed
    assert resumed[1] > 0, resumed
