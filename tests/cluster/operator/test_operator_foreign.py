"""Objects of somebody else that have the name of a child."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from .attempts import DONE, history

pytestmark = [pytest.mark.control, pytest.mark.usefixtures("operator")]

SPECS = {
    "jobs": {
        "suspend": True,
        "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "trainer", "image": "i"}]}},
    },
    "services": {"clusterIP": "None", "selector": {"app": "other"}},
}


@pytest.mark.parametrize("ours", [False, True], ids=["unlabelled", "labelled"])
@pytest.mark.parametrize(("kind", "stage"), [("jobs", "prepare"), ("services", "train")])
def test_a_foreign_object_is_never_touched_and_the_job_recovers_when_it_is_gone(
    api: Any, jobs: Any, kubelet: Any, namespace: str, kind: str, stage: str, ours: bool, eventually: Callable[..., Any]
) -> None:
    """Also one that carries the labels of our children. What happens to the job meanwhile does not delay its recovery."""
    jobs.create(suspend=True, compute={"device": "cpu", "nodes": 2})
    status = jobs.wait("Suspended")
    name = f"job-{status['run']}-{stage}-1"
    labels = {
        "app.kubernetes.io/managed-by": "finetune-operator",
        "finetune.dev/job": "job",
        "finetune.dev/job-uid": jobs.get()["metadata"]["uid"],
        "finetune.dev/run": status["run"],
        "finetune.dev/stage": stage,
        "finetune.dev/attempt": "1",
    }
    root = f"/apis/batch/v1/namespaces/{namespace}" if kind == "jobs" else f"/api/v1/namespaces/{namespace}"
    path = f"{root}/{kind}/{name}"
    api.post(f"{root}/{kind}", {"metadata": {"name": name, "labels": labels if ours else {}}, "spec": SPECS[kind]})
    jobs.patch(suspend=False)
    status = jobs.wait_reason("NameTaken")
    assert f"{'Job' if kind == 'jobs' else 'Service'} {name} exists and belongs to something else" in status["message"]
    assert jobs.condition("Stalled")["status"] == "True"
    foreign = api.get(path)
    for number in range(20):
        api.merge(f"{jobs.path}/job", {"metadata": {"annotations": {"touched": str(number)}}})
        time.sleep(0.1)
    after = api.get(path)
    assert (after["metadata"]["uid"], after["spec"]) == (foreign["metadata"]["uid"], foreign["spec"])
    assert "ownerReferences" not in after["metadata"]
    assert "deletionTimestamp" not in after["metadata"]
    assert not [pod for pod in kubelet.of(stage) if pod["metadata"]["labels"].get("job-name") == name]
    api.delete(path)
    began = time.monotonic()
    jobs.wait("Completed", seconds=60)
    assert time.monotonic() - began < 60
    assert history(jobs.status()) == DONE
    assert jobs.condition("Stalled").get("status") != "True"
