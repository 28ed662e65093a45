"""What a first user meets: each shows within 30 seconds with its reason and remedy, and goes away when it is mended."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [pytest.mark.control, pytest.mark.usefixtures("operator")]


def shown(jobs: Any, reason: str, *words: str, phase: str = "Preparing") -> dict[str, Any]:
    """The reason stands in the status, in the conditions and in one Warning, with these words."""
    status = jobs.wait_reason(reason)
    assert status["phase"] == phase
    assert all(word in status["message"] for word in words), status["message"]
    running = jobs.condition("Running")
    assert (running["status"], running["reason"]) == ("False", reason)
    assert jobs.condition("Reconciling")["message"] == status["message"]
    assert not jobs.condition("Stalled")
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
    jobs.recovers(seconds=40)


def test_missing_workspace_of_several_nodes(jobs: Any, kubelet: Any) -> None:
    jobs.claims("models", "data")
    jobs.create(claims=False, compute={"device": "cpu", "nodes": 2})
    shown(jobs, "MissingClaim", "PersistentVolumeClaim scratch", phase="Pending")
    assert not jobs.children()
    jobs.claims("scratch")
    jobs.recovers(seconds=40)


def test_workspace_that_several_nodes_cannot_share(jobs: Any, kubelet: Any) -> None:
    jobs.claims("models", "data")
    jobs.claims("scratch", mode="ReadWriteOnce")
    jobs.create(claims=False, compute={"device": "cpu", "nodes": 2})
    failure = jobs.wait("Failed")["failure"]
    assert failure["code"] == "InvalidWorkspace"
    assert "ReadWriteOnce" in failure["message"]
    assert "ReadWriteMany" in failure["remedy"]
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
    jobs.recovers(seconds=40)


@pytest.mark.parametrize(
    ("pods", "words"),
    [
        ({"common": {"volumes": [{"name": "tmp", "emptyDir": {}}]}}, "Duplicate value"),
        ({"prepare": {"tolerations": [{"operator": "Sometimes"}]}}, "tolerations[0]"),
        ({"prepare": {"affinity": {"nodeAffinity": {"surprise": 1}}}}, "surprise"),
    ],
)
def test_pod_settings_that_the_api_server_refuses(jobs: Any, kubelet: Any, pods: dict[str, Any], words: str) -> None:
    jobs.create(pods=pods)
    failure = jobs.wait("Failed")["failure"]
    assert failure["code"] == "InvalidSpec"
    assert words in failure["message"]
