"""Plans, budgets and approvals on a real API server."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [pytest.mark.control]


@pytest.fixture
def planned(kubelet: Any, acts: Any) -> Any:
    """Pods whose prepare tells facts. Called with True, trainings run until they are stopped."""

    def script(hold: bool = False) -> None:
        def play(pod: Any) -> Any:
            stage = pod["metadata"]["labels"]["finetune.dev/stage"]
            if stage != "prepare":
                return (acts.hold_training if hold else acts.succeed)(pod)
            return acts.Act(
                0, acts.said("prepare", data={"rows": 80}, plan={"steps": 15}, facts=acts.FACTS, decided={})
            )

        kubelet.script = play

    script()
    return script


@pytest.mark.usefixtures("operator")
def test_over_budget_is_one_sentence_everywhere(jobs: Any, kubelet: Any, planned: Any) -> None:
    jobs.create(budget={"maxDuration": "1s"})
    status = jobs.wait("Failed")
    sentence = status["failure"]["message"]
    assert sentence.startswith("spec.budget.maxDuration: ")
    assert status["message"].startswith(sentence)
    jobs.until("the event", lambda: [e for e in jobs.events() if e["reason"] == "Failed"])
    assert [sentence in e["note"] for e in jobs.events() if e["reason"] == "Failed"] == [True]
    assert jobs.condition("PlanAccepted")["status"] == "False"
    assert not kubelet.of("train")
    assert len(jobs.children()) == 1


def test_approval_outlives_the_operator(jobs: Any, api: Any, namespace: str, planned: Any, start_operator: Any) -> None:
    first = start_operator(api.kubeconfig, FINETUNE_NAMESPACES=namespace)
    jobs.create(budget={"approval": "Manual"})
    digest = jobs.wait("AwaitingApproval")["plan"]["digest"]
    version = jobs.get()["metadata"]["resourceVersion"]
    assert first.terminate() == 0
    second = start_operator(api.kubeconfig, FINETUNE_NAMESPACES=namespace)
    jobs.patch(budget={"approvedPlan": "sha256:other"})
    jobs.until("it is told", lambda: "sha256:other names another plan" in jobs.status()["message"])
    assert jobs.get()["metadata"]["resourceVersion"] != version
    assert len(jobs.children()) == 1
    jobs.patch(budget={"approvedPlan": digest})
    jobs.wait("Completed")
    assert jobs.condition("PlanAccepted")["reason"] == "Approved"
    assert second.terminate() == 0


@pytest.mark.usefixtures("operator")
def test_a_spent_budget_stops_and_a_raised_one_goes_on(jobs: Any, kubelet: Any, planned: Any) -> None:
    planned(hold=True)
    jobs.create()
    jobs.wait("Training")
    jobs.until("its pods run", lambda: jobs.condition("Running").get("status") == "True")
    jobs.patch(budget={"maxDuration": "2s"})
    status = jobs.wait("Suspended")
    assert (status["reason"], status["lastCheckpoint"]["step"]) == ("BudgetExhausted", 7)
    assert jobs.condition("Stalled")["status"] == "True"
    assert "failure" not in status
    planned()
    jobs.patch(budget={"maxDuration": "1h"})
    status = jobs.wait("Completed")
    assert [a["number"] for a in status["attempts"]] == [1, 1, 1], "the same Job went on"
    assert status["usage"]["trainSeconds"] >= 2


@pytest.mark.usefixtures("operator")
def test_a_plan_then_its_training(jobs: Any, kubelet: Any, planned: Any) -> None:
    jobs.create(mode="Plan")
    status = jobs.wait("Completed")
    assert status["reason"] == "Planned"
    assert not kubelet.of("train")
    jobs.patch(mode="Run")
    jobs.until("it is trained", lambda: jobs.status()["reason"] == "Completed")
    assert len(kubelet.of("prepare")) == 1
    assert jobs.status()["run"] == status["run"]


def quota_of_jobs(api: Any, namespace: str, eventually: Any, count: int) -> str:
    """Path of a quota that is in force."""
    quotas = f"/api/v1/namespaces/{namespace}/resourcequotas"
    api.post(quotas, {"metadata": {"name": "few"}, "spec": {"hard": {"count/jobs.batch": str(count)}}})
    eventually("the quota is in force", lambda: api.get(f"{quotas}/few").get("status", {}).get("hard"))
    return f"{quotas}/few"


@pytest.mark.usefixtures("operator")
def test_a_refused_training_is_asked_about_again(
    jobs: Any, kubelet: Any, planned: Any, api: Any, namespace: str, eventually: Any
) -> None:
    """What changed since the API server refused its Job counts: the approval, the compute, and what its pods are told."""
    quota = quota_of_jobs(api, namespace, eventually, 1)
    jobs.create()
    refused = jobs.wait_reason("QuotaExceeded")["attempts"][-1]["job"]
    jobs.patch(budget={"approval": "Manual"}, compute={"nodes": 2})
    jobs.wait("AwaitingApproval")
    api.delete(quota)
    assert refused not in [c["metadata"]["name"] for c in jobs.children()], "it is not approved"
    jobs.patch(budget={"approvedPlan": jobs.status()["plan"]["digest"]})
    status = jobs.wait("Completed")
    assert [(a["stage"], a["outcome"]) for a in status["attempts"]] == [
        ("prepare", "Succeeded"), ("train", "Stopped"), ("train", "Succeeded"), ("publish", "Succeeded"),
    ]  # fmt: skip
    (made,) = [m for m in jobs.children() if m["metadata"]["name"] == status["attempts"][2]["job"]]
    assert '"nodes":2' in made["spec"]["template"]["metadata"]["annotations"]["finetune.dev/run-config"]
    assert len(kubelet.of("train")) == 2


@pytest.mark.usefixtures("operator")
def test_what_a_refused_job_was_told_is_replaced(
    jobs: Any, planned: Any, api: Any, namespace: str, eventually: Any
) -> None:
    quota = quota_of_jobs(api, namespace, eventually, 1)
    jobs.create()
    refused = jobs.wait_reason("QuotaExceeded")["attempts"][-1]["job"]
    generation = jobs.patch(checkpoint={"everySteps": 7})["metadata"]["generation"]
    jobs.until("it is seen", lambda: jobs.status()["observedGeneration"] == generation)
    api.delete(quota)
    status = jobs.wait("Completed")
    assert [a["job"] for a in status["attempts"]][1] == refused, "the attempt stays"
    (made,) = [m for m in jobs.children() if m["metadata"]["name"] == refused]
    assert '"everySteps":7' in made["spec"]["template"]["metadata"]["annotations"]["finetune.dev/run-config"]


@pytest.mark.usefixtures("operator")
def test_a_limit_that_is_lowered_while_it_queues(jobs: Any, kubelet: Any, planned: Any) -> None:
    jobs.create(pods={"train": {"nodeSelector": {"no-such": "label"}}})
    jobs.wait_reason("Unschedulable")
    jobs.patch(budget={"maxDuration": "1s"})
    status = jobs.wait("Failed")
    assert status["reason"] == "OverBudget"
    jobs.until("it asks for nothing any more", lambda: len(jobs.children()) == 1)
    assert jobs.condition("PlanAccepted")["status"] == "False"


@pytest.mark.usefixtures("operator")
def test_a_sentence_longer_than_an_event_may_be(jobs: Any, kubelet: Any, acts: Any) -> None:
    """The API server counts bytes."""
    sentence = "prepared/größe.jsonl:3: " + "ü" * 700
    cause = {"code": "InvalidData", "message": sentence, "remedy": "Mend it"}
    kubelet.script = lambda _: acts.Act(3, acts.said("prepare", "failed", 3, cause=cause))
    jobs.create()
    assert jobs.wait("Failed")["failure"]["message"] == sentence, "in status it is whole"
    jobs.until("the event", lambda: [e for e in jobs.events() if e["reason"] == "Failed"])
    (note,) = [e["note"] for e in jobs.events() if e["reason"] == "Failed"]
    assert note.endswith("ü…")
    assert 1020 <= len(note.encode()) <= 1024
