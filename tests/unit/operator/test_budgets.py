"""Between prepare and train, and while it trains: plan, budget, approval."""

from __future__ import annotations

from typing import Any

import pytest

GPU = {"nodes": 1, "gpusPerNode": 4, "gpuType": "nvidia-h100-80gb"}


def reason_of(world: Any, kind: str) -> str:
    return next(c["reason"] for c in world.status["conditions"] if c["type"] == kind)


@pytest.mark.parametrize(
    ("budget", "field"),
    [
        ({"maxDuration": "1s"}, "spec.budget.maxDuration"),
        ({"maxGpuHours": 1e-6}, "spec.budget.maxGpuHours"),
        ({"maxCost": 1e-6, "gpuHourPrice": 2.5}, "spec.budget.maxCost"),
    ],
)
def test_a_plan_beyond_the_budget_is_refused(make_world: Any, prepared: Any, budget: Any, field: str) -> None:
    world = make_world(budget=budget, compute=GPU)
    world.prepare(**prepared)
    status = world.status
    assert (status["phase"], status["reason"], status["failure"]["code"]) == ("Failed", "OverBudget", "OverBudget")
    sentence = status["failure"]["message"]
    assert sentence.startswith(field)
    assert status["message"].startswith(sentence)
    assert sum(sentence in note.text for note in world.events) == 1
    told = world.truths
    assert (told["PlanAccepted"], told["DataValid"], told["Ready"], told["Stalled"]) == (
        "False", "True", "False", "True",
    )  # fmt: skip
    assert "Reconciling" not in told
    world.edit(budget={})
    world.settle()
    assert (world.status["phase"], world.stages) == ("Failed", ["prepare"]), "terminal is terminal"


@pytest.mark.parametrize("suspended", [False, True])
def test_an_approval_names_the_plan(make_world: Any, prepared: Any, suspended: bool) -> None:
    world = make_world(budget={"approval": "Manual"}, readyWhen="Accepted")
    world.settle()
    world.run("prepare")
    world.settle()
    world.finish("prepare", **prepared)
    world.edit(suspend=suspended)
    world.settle()
    digest = world.status["plan"]["digest"]
    told = world.truths
    assert (told["PlanAccepted"], told.get("Ready")) == ("False", None if suspended else "False")
    assert reason_of(world, "PlanAccepted") == "AwaitingApproval"
    assert world.stages == ["prepare"]
    world.edit(suspend=False)
    world.settle()
    assert (world.status["phase"], world.status["reason"]) == ("AwaitingApproval", "AwaitingApproval")
    assert digest in world.status["message"]
    before = len(world.events)
    for _ in range(5):  # nothing new is told, and the plan stays what it is
        world.now += 100
        world.known.clear()
        world.settle()
    assert (len(world.events), world.status["plan"]["digest"]) == (before, digest)
    world.edit(budget={"approval": "Manual", "approvedPlan": "sha256:other"})
    world.settle()
    assert "sha256:other" in world.status["message"]
    assert world.stages == ["prepare"]
    world.edit(budget={"approval": "Manual", "approvedPlan": digest})
    drawn = world.plan()
    assert drawn.status_first, "PlanAccepted is written before the training's objects"
    world.settle()
    assert (reason_of(world, "PlanAccepted"), world.truths["Ready"]) == ("Approved", "True")
    assert world.stages == ["prepare", "train"]


def test_a_changed_plan_is_not_the_approved_one(make_world: Any, prepared: Any) -> None:
    world = make_world(budget={"approval": "Manual"})
    world.prepare(**prepared)
    world.edit(
        compute={"device": "cpu", "nodes": 2},
        budget={"approval": "Manual", "approvedPlan": world.status["plan"]["digest"]},
    )
    world.share()
    world.settle()
    assert world.status["phase"] == "AwaitingApproval"


def test_a_trainer_that_tells_no_facts(make_world: Any) -> None:
    """An older image: it trains, but what nobody can approve is not approved."""
    world = make_world()
    world.through("prepare", "train", "publish")
    assert world.status["phase"] == "Completed"
    world = make_world(budget={"approval": "Manual"})
    world.prepare(**{"plan": {"steps": 4, "digest": "sha256:mine"}})
    assert (world.status["phase"], world.stages) == ("AwaitingApproval", ["prepare"])
    assert "trainer image" in world.status["message"]


def test_mode_plan_ends_with_the_plan_and_mode_run_goes_on(make_world: Any, prepared: Any) -> None:
    world = make_world(mode="Plan")
    world.prepare(**prepared)
    run = world.status["run"]
    assert (world.status["phase"], world.status["reason"]) == ("Completed", "Planned")
    told = world.truths
    assert (told["Ready"], told["Complete"], told["PlanAccepted"]) == ("True", "True", "True")
    assert world.stages == ["prepare"]
    world.edit(mode="Run")
    world.settle()
    assert (world.status["phase"], world.status["run"]) == ("Queued", run)
    assert "Complete" not in world.truths
    world.through("train", "publish")
    assert world.book == [("prepare", 1, "Succeeded"), ("train", 1, "Succeeded"), ("publish", 1, "Succeeded")]
    world.edit(mode="Plan")
    world.settle()
    assert world.status["reason"] == "Completed"


def test_a_plan_alone_approves_nothing(make_world: Any, prepared: Any) -> None:
    world = make_world(mode="Plan", budget={"approval": "Manual"})
    world.prepare(**prepared)
    assert (world.status["reason"], reason_of(world, "PlanAccepted")) == ("Planned", "AwaitingApproval")
    world.edit(mode="Run")
    world.settle()
    assert (world.status["phase"], world.stages) == ("AwaitingApproval", ["prepare"])


@pytest.mark.parametrize(
    ("budget", "raised", "spent"),
    [
        ({"maxDuration": "10m"}, {"maxDuration": "20m"}, 600),
        ({"maxGpuHours": 0.6667}, {"maxGpuHours": 2}, 601),
        ({"maxCost": 1.23456, "gpuHourPrice": 2.5}, {"maxCost": 4, "gpuHourPrice": 2.5}, 445),
    ],
    ids=["duration", "GPU hours", "cost"],
)
def test_a_training_that_has_spent_its_budget(
    make_world: Any, prepared: Any, words: Any, budget: Any, raised: Any, spent: int
) -> None:
    world = make_world(budget=budget, compute=GPU)
    world.prepare(**prepared)
    world.run("train")
    drawn = world.settle()
    assert world.status["phase"] == "Training", world.status["message"]
    assert drawn.requeue_after is not None
    assert drawn.requeue_after <= spent, "time alone brings the stop"
    world.known.clear()  # an operator that has just begun
    for _ in range(3):  # by a clock of floats
        world.now += drawn.requeue_after or 0
        drawn = world.settle()
    assert world.job("train").suspended, drawn
    assert (world.status["reason"], world.usage["trainSeconds"]) == ("Suspending", spent)
    world.now += 7
    world.end("train", 5, 0, words("train", "stopped", 5, step=3, lastCheckpoint={"step": 3}))
    world.settle()
    world.pods[world.job("train").name] = {}  # the Job controller deletes the pods of a suspended Job
    world.settle()
    status = world.status
    assert (status["phase"], status["reason"], world.usage["trainSeconds"]) == ("Suspended", "BudgetExhausted", spent)
    assert "step 3" in status["message"]
    told = world.truths
    assert (told["Ready"], told["Stalled"], told["Suspended"]) == ("False", "True", "True")
    assert "Reconciling" not in told
    assert "failure" not in status
    assert "infraFailures" not in world.state
    assert [n.reason for n in world.events].count("BudgetExhausted") == 1
    for _ in range(5):
        world.now += 500
        world.settle()
    assert world.job("train").suspended, "and it stays so"
    world.edit(budget=raised)
    world.settle()
    assert not world.job("train").suspended
    world.run("train")
    world.settle()
    assert "Stalled" not in world.truths
    world.now += 20
    world.finish("train")
    world.settle()
    assert world.usage["trainSeconds"] == pytest.approx(spent + 20, abs=1)
    assert [(s, n) for s, n, _ in world.book] == [("prepare", 1), ("train", 1), ("publish", 1)], "the same Job went on"


def test_what_was_spent_counts_over_attempts(make_world: Any, prepared: Any, words: Any) -> None:
    world = make_world(budget={"maxDuration": "10m"})
    world.prepare(**prepared)
    world.run("train")
    world.settle()
    world.now += 550
    world.end("train", 137)
    world.fail("train")
    world.settle()
    world.now += 60
    world.settle()
    world.run("train")
    assert world.settle().requeue_after == pytest.approx(50, abs=1)
    world.now += 51
    world.end("train", 137)
    world.fail("train")
    world.settle()
    assert (world.status["phase"], world.status["reason"]) == ("Suspended", "BudgetExhausted")
    assert "failure" not in world.status


def test_another_run_owes_nothing(make_world: Any, prepared: Any) -> None:
    world = make_world(budget={"maxDuration": "10m"})
    world.prepare(**prepared)
    world.run("train")
    world.settle()
    world.now += 100
    world.finish("train")
    world.settle()
    world.through("publish")
    assert world.usage["trainSeconds"] == 100
    world.edit(runToken="again")
    world.settle()
    assert not {"plan", "usage"} & world.status.keys()
    assert not {"facts", "decided"} & world.state.keys()


def test_a_plan_that_nobody_approves_gives_way_to_another_run(make_world: Any, prepared: Any) -> None:
    """As the message of a plan that cannot be approved says. What has trained is not cut short."""
    world = make_world(budget={"approval": "Manual"})
    world.prepare(**{"plan": {"steps": 4}})
    first = world.status["run"]
    assert "set a new spec.runToken" in world.status["message"]
    world.edit(runToken="again")
    world.prepare(**prepared)
    assert world.status["run"] != first
    assert [job.run for job in world.jobs.values()] == [world.status["run"]]
    world.edit(budget={"approval": "Manual", "approvedPlan": world.status["plan"]["digest"]})
    world.settle()
    world.run("train")
    world.settle()
    world.now += 50
    world.end("train", 137, disrupted="drain")
    world.fail("train")
    world.edit(budget={"approval": "Manual"})
    world.settle()
    run = world.status["run"]
    assert world.status["phase"] == "AwaitingApproval"
    world.edit(runToken="once more")
    world.settle()
    assert (world.status["run"], world.status["phase"]) == (run, "AwaitingApproval")
