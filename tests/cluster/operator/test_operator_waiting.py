"""What a first user meets: each shows within 30 seconds with its reason and remedy, and goes away when it is mended."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from finetune_operator.domain.times import stamp

pytestmark = [pytest.mark.control, pytest.mark.usefixtures("operator")]


def shown(jobs: Any, reason: str, *words: str, phase: str = "Preparing") -> dict[str, Any]:
    """The reason stands in the status, in the conditions and in one Warning, with these words."""
    status = jobs.wait_reason(reason)
    assert status["phase"] == phase
    assert all(word in status["message"] for word in words), status["message"]
    running = jobs.condition("Running")
    assert (running["status"], running["reason"]) == ("False", reason)
    waits = reason in ("Unschedulable", "QuotaExceeded")
    assert jobs.condition("Reconciling" if waits else "Stalled")["message"] == status["message"]
    assert not jobs.condition("Stalled" if waits else "Reconciling")
    jobs.until(
        "an event tells of it", lambda: [e for e in jobs.events() if (e["type"], e["reason"]) == ("Warning", reason)]
    )
    return status


def test_image_that_cannot_be_pulled(jobs: Any, kubelet: Any, acts: Any) -> None:
    kubelet.script = lambda pod: acts.Act(waiting=("ErrImagePull", "failed to resolve: not found"))
    jobs.create()
    status = shown(jobs, "ImagePullFailed", "registry.example/trainer:1", "not found", "imagePullSecrets")
    back_off = 'Back-off pulling image "registry.example/trainer:1": ErrImagePull: failed to resolve: not found'
    kubelet.script = lambda pod: acts.Act(waiting=("ImagePullBackOff", back_off))
    pod = kubelet.of("prepare")[0]
    jobs.until("the kubelet backs off", lambda: "BackOff" in str(jobs.api.get(kubelet.path(pod))["status"]))
    assert jobs.status() == status, "the kubelet's alternation is not worth a write"
    kubelet.script = acts.succeed
    # The container state goes from waiting to running once the registry answers.
    jobs.recovers()


def test_missing_secret(jobs: Any, kubelet: Any, acts: Any) -> None:
    def without(pod: Any) -> Any:
        sources = pod["spec"]["containers"][0].get("envFrom", [])
        if sources and not jobs.api.find(f"/api/v1/namespaces/{jobs.namespace}/secrets/hub"):
            return acts.Act(waiting=("CreateContainerConfigError", 'secret "hub" not found'))
        return acts.succeed(pod)

    kubelet.script = without
    jobs.create(model={"uri": "hf://org/model", "secretRef": {"name": "hub"}})
    shown(jobs, "MissingSecret", "Secret hub", "kubectl create secret")
    jobs.api.post(
        f"/api/v1/namespaces/{jobs.namespace}/secrets", {"metadata": {"name": "hub"}, "stringData": {"HF_TOKEN": "x"}}
    )
    jobs.recovers()


def test_missing_claim(jobs: Any, kubelet: Any) -> None:
    jobs.claims("models", "scratch")
    jobs.create(claims=False)
    shown(jobs, "MissingClaim", "PersistentVolumeClaim data", "Create it")
    jobs.claims("data")
    jobs.recovers()


def test_missing_workspace_of_several_nodes(jobs: Any, kubelet: Any) -> None:
    jobs.claims("models", "data")
    jobs.create(claims=False, compute={"device": "cpu", "nodes": 2})
    shown(jobs, "MissingClaim", "PersistentVolumeClaim scratch", phase="Pending")
    assert not jobs.children()
    jobs.claims("scratch")
    jobs.recovers()


def test_workspace_that_several_nodes_cannot_share(jobs: Any, kubelet: Any) -> None:
    jobs.claims("models", "data")
    jobs.claims("scratch", mode="ReadWriteOnce")
    jobs.create(claims=False, compute={"device": "cpu", "nodes": 2})
    message = jobs.wait_reason("InvalidWorkspace")["message"]
    assert "ReadWriteOnce" in message
    assert "ReadWriteMany" in message
    assert not jobs.children()


def test_unbound_claim(jobs: Any, kubelet: Any) -> None:
    jobs.claims("models", "data")
    claim = {
        "metadata": {"name": "scratch"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
            "storageClassName": "nobody-provides-this",
        },
    }
    jobs.api.post(f"/api/v1/namespaces/{jobs.namespace}/persistentvolumeclaims", claim)
    jobs.create(claims=False)
    shown(jobs, "UnboundClaim", "kubectl describe pvc")


def test_unschedulable(jobs: Any, kubelet: Any) -> None:
    jobs.create(pods={"prepare": {"nodeSelector": {"disk": "quick"}}})
    shown(jobs, "Unschedulable", "didn't match Pod's node affinity/selector")
    jobs.patch(pods={"prepare": {"nodeSelector": None}})
    jobs.recovers()


def test_quota(jobs: Any, kubelet: Any) -> None:
    path = f"/api/v1/namespaces/{jobs.namespace}/resourcequotas"
    jobs.api.post(path, {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}})
    jobs.until("the quota counts", lambda: jobs.api.get(f"{path}/none").get("status", {}).get("hard"))
    jobs.create()
    shown(jobs, "QuotaExceeded", "exceeded quota: none", "kubectl describe quota")
    jobs.api.delete(f"{path}/none")
    jobs.recovers(seconds=60)


def test_quota_on_limits(jobs: Any, kubelet: Any) -> None:
    """Not used up: it wants limits, which the job does not set."""
    path = f"/api/v1/namespaces/{jobs.namespace}/resourcequotas"
    jobs.api.post(
        path, {"metadata": {"name": "limits"}, "spec": {"hard": {"limits.cpu": "8", "limits.memory": "16Gi"}}}
    )
    jobs.until("the quota counts", lambda: jobs.api.get(f"{path}/limits").get("status", {}).get("hard"))
    jobs.create()
    status = jobs.wait_reason("ResourcesNotSet")
    assert "spec.pods.common.resources.limits.cpu, spec.pods.common.resources.limits.memory" in status["message"]
    jobs.api.delete(f"{path}/limits")
    jobs.recovers(seconds=60)


def test_limit_range(jobs: Any, kubelet: Any) -> None:
    path = f"/api/v1/namespaces/{jobs.namespace}/limitranges"
    limit = {"type": "Container", "max": {"cpu": "1m"}, "default": {"cpu": "1m"}, "defaultRequest": {"cpu": "1m"}}
    jobs.api.post(path, {"metadata": {"name": "small"}, "spec": {"limits": [limit]}})
    jobs.create(pods={"prepare": {"resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "2"}}}})
    assert "maximum cpu usage per Container is 1m" in jobs.wait_reason("LimitRangeViolated")["message"]
    jobs.api.delete(f"{path}/small")
    jobs.recovers(seconds=60)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"pods": {"prepare": {"serviceAccountName": "nope"}}}, "MissingServiceAccount"),
        ({"pods": {"prepare": {"runtimeClassName": "nope"}}}, "MissingRuntimeClass"),
    ],
)
def test_an_object_that_the_pods_name(jobs: Any, kubelet: Any, spec: dict[str, Any], reason: str) -> None:
    jobs.create(**spec)
    assert "nope" in jobs.wait_reason(reason)["message"]


def test_a_pod_that_no_scheduler_places(jobs: Any, kubelet: Any) -> None:
    jobs.create(pods={"prepare": {"schedulerName": "volcano"}})
    jobs.wait_reason("Starting")
    status = jobs.wait_reason("NoScheduler", seconds=90)
    assert "its schedulerName is volcano" in status["message"]


def test_a_warning_that_stops_nothing(jobs: Any, kubelet: Any, acts: Any, eventually: Callable[..., Any]) -> None:
    kubelet.script = lambda pod: acts.Act(waiting=("ContainerCreating", ""))
    jobs.create()
    pod = eventually("a pod", lambda: kubelet.of("prepare"))[0]
    for at, kind, reason, message in (
        # What is shown comes first, so that no look between two of them finds a warning alone.
        (12, "Normal", "Pulling", 'Pulling image "registry.example/trainer:1"'),
        (13, "Warning", "DNSConfigForming", "Nameserver limits were exceeded, some nameservers have been omitted"),
        (-30, "Warning", "FailedAttachVolume", 'Multi-Attach error for volume "pvc-1"'),
    ):
        event = {
            "metadata": {"name": f"{reason.lower()}.1", "namespace": jobs.namespace},
            "involvedObject": {"kind": "Pod", "name": pod["metadata"]["name"], "namespace": jobs.namespace},
            "type": kind,
            "reason": reason,
            "message": message,
            "lastTimestamp": stamp(time.time() + at),
        }
        jobs.api.post(f"/api/v1/namespaces/{jobs.namespace}/events", event)
    jobs.until("the pull is shown", lambda: "is pulling image" in jobs.status()["message"], seconds=40)
    assert jobs.status()["reason"] == "Starting"
    assert [(e["reason"], e["note"]) for e in jobs.events() if e["type"] == "Warning"] == []


def test_pod_security(jobs: Any, kubelet: Any) -> None:
    """The defaults satisfy the restricted level; what a user asks for beyond it is told."""
    level = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    jobs.api.merge(f"/api/v1/namespaces/{jobs.namespace}", level)
    jobs.create("good")
    jobs.recovers("good")
    jobs.create(pods={"common": {"volumes": [{"name": "host", "hostPath": {"path": "/"}}]}})
    shown(jobs, "PodSecurity", "restricted", "hostPath", "spec.pods")


def test_a_name_that_is_taken(jobs: Any, kubelet: Any, operator: Any) -> None:
    """Never adopted: reported, waited out, and made when the name is free."""
    jobs.create(suspend=True)
    jobs.wait("Suspended")
    run, path = jobs.status()["run"], f"/apis/batch/v1/namespaces/{jobs.namespace}/jobs"
    name = f"job-{run}-prepare-1"
    pod = {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}
    other = {"metadata": {"name": name}, "spec": {"suspend": True, "template": {"spec": pod}}}
    jobs.api.post(path, other)
    jobs.patch(suspend=False)
    shown(jobs, "NameTaken", f"Job {name}")
    assert jobs.api.get(f"{path}/{name}")["metadata"].get("ownerReferences") is None
    jobs.api.delete(f"{path}/{name}")
    jobs.recovers()


@pytest.mark.parametrize(
    ("pods", "words"),
    [
        ({"prepare": {"tolerations": [{"operator": "Sometimes"}]}}, "tolerations[0]"),
        ({"prepare": {"affinity": {"nodeAffinity": {"surprise": 1}}}}, "surprise"),
    ],
)
def test_pod_settings_that_the_api_server_refuses(jobs: Any, kubelet: Any, pods: dict[str, Any], words: str) -> None:
    jobs.create(pods=pods)
    assert words in jobs.wait_reason("Rejected")["message"]
