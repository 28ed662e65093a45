"""The gate holds until pods run: whatever changes while a training waits, nothing trains that nobody accepted."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.domain.observed import Refusal

GPU = {"nodes": 1, "gpusPerNode": 4, "gpuType": "nvidia-h100-80gb"}


def refuse_trainings(world: Any) -> Any:
    """The API server takes no Job of a training until the returned function is called. Other objects it takes."""
    create = world._create

    def refusing(body: dict[str, Any]) -> None:
        name = body["metadata"]["name"]
        if body["kind"] == "Job" and "-train-" in name:
            world.refusals["Job", name] = Refusal("Job", name, 403, "exceeded quota")
        else:
            create(body)

    def take() -> None:
        world._create = create
        world.refusals.clear()

    world._create = refusing
    return take


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, str]]] = {
    "a lowered limit": ({}, {"budget": {"maxDuration": "1s"}}, ("Failed", "OverBudget")),
    "an approval that is withdrawn": (
        {"approval": "Manual"},
        {"budget": {"approval": "Manual"}},
        ("AwaitingApproval", "AwaitingApproval"),
    ),
    "an approval that is asked for": (
        {},
        {"budget": {"approval": "Manual"}},
        ("AwaitingApproval", "AwaitingApproval"),
    ),
    "only a plan after all": ({}, {"mode": "Plan"}, ("Completed", "Planned")),
}


@pytest.mark.parametrize(("before", "change", "end"), CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("where", ["refused", "in a queue", "without a node"])
def test_what_counts_while_a_training_waits(
    make_world: Any, prepared: Any, where: str, before: Any, change: Any, end: tuple[str, str]
) -> None:
    world = make_world(budget=before, mode="Run")
    take = refuse_trainings(world) if where == "refused" else lambda: None
    world.queued_elsewhere = where == "in a queue"
    world.prepare(**prepared)
    if before:
        world.edit(budget=before | {"approvedPlan": world.status["plan"]["digest"]})
        world.settle()
    assert world.status["phase"] == "Queued"
    if where == "without a node":
        world.pod("train", phase="Pending", unschedulable="0/3 nodes", unschedulable_since=world.now - 60)
        world.settle()
        assert world.status["reason"] == "Unschedulable"
    world.edit(**change)
    world.settle()
    assert (world.status["phase"], world.status["reason"]) == end
    assert not [job for job in world.jobs.values() if job.stage == "train"], "what it queued with is gone"
    assert not [name for _, name in world.known if "-train-" in name], "and what its pods would have been told"
    assert ("train", 1, "Stopped") in world.book
    if end[0] != "Completed":  # of a plan alone, the plan is what was asked for
        assert world.truths["PlanAccepted"] == "False"
    take()
    world.settle()
    assert world.stages == ["prepare"]
    if end[0] == "Failed":
        return
    world.edit(mode="Run", budget={})
    world.settle()
    assert world.status["phase"] == "Queued"
    assert [attempt[:2] for attempt in world.book] == [("prepare", 1), ("train", 1), ("train", 2)]


def test_a_refused_job_is_made_by_the_settings_that_count_then(make_world: Any, prepared: Any) -> None:
    """Its run config too, and the plan that was approved."""
    world = make_world(budget={"approval": "Manual"})
    world.share()
    take = refuse_trainings(world)
    world.prepare(**prepared)
    world.edit(budget={"approval": "Manual", "approvedPlan": world.status["plan"]["digest"]})
    world.settle()
    assert world.status["reason"] == "QuotaExceeded"
    world.edit(compute={"device": "cpu", "nodes": 2})
    take()
    world.settle()
    assert (world.status["phase"], world.stages) == ("AwaitingApproval", ["prepare"])
    digest = world.status["plan"]["digest"]
    world.edit(budget={"approval": "Manual", "approvedPlan": digest})
    world.settle()
    made = world.manifests["Job", world.job("train").name]
    assert made["spec"]["parallelism"] == 2
    assert digest in world.run_config("train")


def test_a_refused_job_gets_the_run_config_of_now(make_world: Any, prepared: Any) -> None:
    """Where nobody has to approve, the attempt stays; what it is told must not be what was true at the refusal."""
    world = make_world()
    take = refuse_trainings(world)
    world.prepare(**prepared)
    world.edit(checkpoint={"everySteps": 7})
    take()
    world.settle()
    assert '"everySteps":7' in world.run_config("train")


@pytest.mark.parametrize("prepared_before", [False, True], ids=["while it is prepared", "afterwards"])
@pytest.mark.parametrize(
    ("compute", "strategy"),
    [
        ({"device": "cpu", "offload": {"optimizer": "cpu"}}, ("zero2", "zero3", "fsdp2")),
        ({"device": "cpu", "strategy": "fsdp2"}, ("fsdp2",)),
        ({"device": "cpu", "processesPerNode": 2}, ("ddp",)),
    ],
)
def test_compute_that_no_longer_goes_with_what_was_decided(
    make_world: Any, prepared: Any, compute: Any, strategy: tuple[str, ...], prepared_before: bool
) -> None:
    world = make_world()
    prepared["decided"] = {"training": {"learningRate": 3e-4}, "compute": {"strategy": "ddp"}}
    if prepared_before:
        world.prepare(**prepared)
        world.edit(compute=compute)
        world.settle()
    else:
        world.settle()
        world.run("prepare")
        world.settle()
        world.edit(compute=compute)
        world.finish("prepare", **prepared)
        world.settle()
    assert world.status["phase"] == "Queued"
    assert world.state["effective"]["compute"]["strategy"] in strategy
    assert world.state["effective"]["training"]["learningRate"] == 3e-4, "the rest of what was decided holds"
    assert world.state["effective"]["compute"].get("offload") == compute.get("offload")
    assert world.state["decided"]["compute"] == {"strategy": "ddp"}, "should compute change back"


@pytest.mark.parametrize("elsewhere", [False, True], ids=["ours to release", "in a queue"])
def test_a_training_that_queues_is_made_anew_when_compute_changes(
    make_world: Any, prepared: Any, elsewhere: bool
) -> None:
    """So that what runs is what the plan in status says."""
    world = make_world()
    world.share()
    world.queued_elsewhere = elsewhere
    world.settle()
    world.run("prepare")
    world.finish("prepare", **prepared)
    while world.stages == ["prepare"]:
        world.step()
    assert world.job("train").suspended
    before = world.status["plan"]["digest"]
    world.edit(compute={"device": "cpu", "nodes": 2})
    world.settle()
    assert world.status["plan"]["digest"] != before
    assert world.manifests["Job", world.job("train").name]["spec"]["parallelism"] == 2
    assert len([job for job in world.jobs.values() if job.stage == "train"]) == 1


def test_a_pod_decides_what_the_data_decides_and_no_more(make_world: Any, prepared: Any) -> None:
    world = make_world(compute={"gpuType": "h100"})
    prepared["decided"] = {
        "training": {"learningRate": 3e-4, "precision": "fp16", "seed": 1},
        "compute": {"strategy": "zero2", "gpusPerNode": 64, "gpuMemory": "1Mi", "nodes": 9},
        "method": {"lora": {"rank": 8, "modulesToSave": ["x"]}, "initFrom": {"uri": "pvc://models/mine"}},
        "pods": {"common": {"image": "evil:1"}},
        "budget": {"approval": "Automatic"},
        "checkpoint": {"everySteps": 9, "keep": 9},
    }
    world.prepare(**prepared)
    assert world.state["decided"] == {
        "training": {"learningRate": 3e-4},
        "compute": {"strategy": "zero2"},
        "method": {"lora": {"rank": 8}},
        "checkpoint": {"everySteps": 9},
    }
    assert world.status["gpus"] == 1


def test_a_pod_tells_the_results_of_its_own_stage(make_world: Any, prepared: Any, words: Any) -> None:
    world = make_world()
    prepared["plan"] |= {"cost": 1e6, "warning": "run!", "digest": "sha256:mine"}
    world.prepare(**prepared)
    plan, data = world.status["plan"], world.status["data"]
    assert plan["steps"] == 150
    assert "cost" not in plan
    assert "warning" not in plan
    assert plan["digest"] != "sha256:mine"
    world.run("train")
    world.settle()
    world.end("train", 1, 0, words("train", "failed", 1, plan={"steps": 1}, data={"rows": 1}))
    world.fail("train")
    world.settle()
    world.now += 60
    world.settle()
    world.run("train")
    world.finish("train", plan={"steps": 1}, data={"rows": 1}, facts={}, artifacts={"uri": "pvc://elsewhere"})
    world.settle()
    assert (world.status["plan"], world.status["data"]) == (plan, data)
    assert "artifacts" not in world.status


def test_a_suspended_job_shows_what_it_would_do(make_world: Any, prepared: Any) -> None:
    world = make_world(compute=GPU | {"gpusPerNode": 8}, budget={"gpuHourPrice": 2.5}, readyWhen="Accepted")
    world.settle()
    world.run("prepare")
    world.finish("prepare", **prepared)
    world.edit(suspend=True)
    world.settle()
    before = world.status["plan"]
    assert (world.truths["PlanAccepted"], world.truths["Ready"]) == ("True", "True")
    world.edit(compute=GPU)
    world.settle()
    assert world.status["plan"]["digest"] != before["digest"]
    world.edit(budget={"maxCost": 1e-6, "gpuHourPrice": 2.5})
    world.settle()
    assert (world.status["phase"], world.truths["PlanAccepted"]) == ("Suspended", "False")
    assert "Ready" not in world.truths
    world.edit(budget={}, suspend=False)
    world.settle()
    assert (world.status["phase"], world.status["gpus"]) == ("Queued", 4)


def test_costs_that_nobody_can_know(make_world: Any, prepared: Any) -> None:
    """A limit that cannot be watched is no limit: it is refused before training, and stops one that runs."""
    world = make_world(compute=GPU, budget={"maxCost": 5})
    world.prepare(**prepared)
    assert (world.status["phase"], world.status["reason"]) == ("Failed", "OverBudget")
    assert "set spec.budget.gpuHourPrice" in world.status["message"]
    world = make_world(compute=GPU, budget={"maxCost": 5, "gpuHourPrice": 1})
    world.prepare(**prepared)
    world.run("train")
    world.settle()
    world.edit(budget={"maxCost": 5})
    world.settle()
    assert world.status["reason"] == "Suspending"
    assert "spec.budget.gpuHourPrice" in world.status["message"]


@pytest.mark.parametrize("how", ["its pod ended", "its pod was replaced", "its Job failed"])
def test_hours_in_which_nothing_ran_are_nobodys(make_world: Any, prepared: Any, words: Any, how: str) -> None:
    """An operator that was away finds a training that ended long ago."""
    world = make_world(compute=GPU, budget={"maxDuration": "1h"})
    world.prepare(**prepared)
    world.run("train")
    world.settle()
    world.now += 100
    if how == "its pod was replaced":
        pod = next(iter(world.pods[world.job("train").name].values()))
        world.pods[world.job("train").name] = {}
        world.pod("train", phase="Pending", unschedulable="0/3 nodes", unschedulable_since=world.now)
        assert pod.created < world.now
    else:
        if how == "its Job failed":
            world.pods[world.job("train").name] = {}
        else:
            world.end("train", 137, disrupted="drain")
        world.fail("train")
    world.now += 9 * 3600
    world.settle()
    assert (world.usage["trainSeconds"], world.usage["gpuSeconds"]) == (100, 400)
    assert world.status["reason"] != "BudgetExhausted"
    assert "failure" not in world.status
