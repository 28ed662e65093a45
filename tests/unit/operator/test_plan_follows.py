"""status.plan follows the spec as long as no training pod runs, and so does its approval."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from finetune_api.effective import PlatformDefaults

GPU = {"nodes": 1, "gpusPerNode": 4, "gpuType": "nvidia-h100-80gb"}
PRICED = {"approval": "Manual", "gpuHourPrice": 2.5, "maxCost": 100}


@pytest.fixture
def approved(make_world: Any, prepared: Any) -> Any:
    """A training whose plan is approved; none of its pods runs yet."""
    world = make_world(compute=GPU, budget=PRICED)
    world.settle()
    world.run("prepare")
    world.settle()
    world.finish("prepare", **prepared)
    world.settle()
    world.edit(budget=PRICED | {"approvedPlan": world.status["plan"]["digest"]})
    world.settle()
    assert world.status["phase"] == "Queued"
    return world


def budget(world: Any, **change: Any) -> None:
    world.edit(budget=world.body["spec"]["budget"] | change)
    world.settle()


def pause(world: Any, words: Any) -> None:
    """The training runs, and is suspended with a checkpoint."""
    world.run("train")
    world.settle()
    world.now += 100
    world.edit(suspend=True)
    world.settle()
    world.end("train", 5, 0, words("train", "stopped", 5, step=3, lastCheckpoint={"step": 3}))
    world.settle()
    world.pods[world.job("train").name] = {}
    world.settle()
    assert world.status["phase"] == "Suspended"


@pytest.mark.parametrize(
    ("price", "end"),
    [(3.0, ("AwaitingApproval", "AwaitingApproval")), (1e6, ("Failed", "OverBudget"))],
)
def test_a_price_that_changes_while_no_node_takes_the_pods(approved: Any, price: float, end: tuple[str, str]) -> None:
    world = approved
    world.pod("train", phase="Pending", unschedulable="0/3 nodes", unschedulable_since=world.now - 60)
    world.settle()
    assert world.status["reason"] == "Unschedulable"
    budget(world, gpuHourPrice=price)
    assert (world.status["phase"], world.status["reason"]) == end
    assert {job.stage for job in world.jobs.values()} == {"prepare"}


def test_compute_counts_from_the_next_attempt_once_pods_start(approved: Any) -> None:
    """They were approved as they are; the plan stays what they do."""
    world, plan = approved, approved.status["plan"]
    world.pod("train", phase="Pending", node="node-0")
    world.edit(compute=GPU | {"gpusPerNode": 8})
    world.settle()
    world.run("train")
    world.settle()
    assert (world.status["phase"], world.status["plan"], world.status["gpus"]) == ("Training", plan, 4)


@pytest.mark.parametrize("changed", ["compute", "price"])
def test_what_changes_in_a_pause_is_approved_before_it_ends(approved: Any, words: Any, changed: str) -> None:
    world, before = approved, approved.status["plan"]["digest"]
    pause(world, words)
    assert (world.condition("PlanAccepted"), world.status["plan"]["digest"]) == ("True", before)
    if changed == "compute":
        world.edit(compute=GPU | {"gpusPerNode": 8})
        world.settle()
    else:
        budget(world, gpuHourPrice=3.0)
    digest = world.status["plan"]["digest"]
    assert digest != before
    assert (world.status["phase"], world.condition("PlanAccepted")) == ("Suspended", "False")
    world.edit(suspend=False)
    world.settle()
    assert world.status["phase"] == "AwaitingApproval"
    assert {job.stage for job in world.jobs.values()} == {"prepare"}
    budget(world, approvedPlan=digest)
    assert (world.status["phase"], world.status["lastCheckpoint"]) == ("Queued", {"step": 3})
    assert world.status["gpus"] == (8 if changed == "compute" else 4)


def test_a_raised_limit_asks_nobody_again(approved: Any, words: Any) -> None:
    world = approved
    pause(world, words)
    budget(world, maxDuration="50s")
    world.edit(suspend=False)
    world.settle()
    assert world.status["reason"] == "BudgetExhausted"
    job = world.job("train").name
    budget(world, maxDuration="9h")
    assert not world.jobs[job].suspended
    assert world.condition("PlanAccepted") == "True"


def test_what_a_pause_stopped_is_no_stop_of_what_goes_on(approved: Any, words: Any) -> None:
    """The old pods are seen a while longer, the Job controller's word comes late, and the new pods later still."""
    world = approved
    pause(world, words)
    world.now += 10
    world.end("train", 5, 0, words("train", "stopped", 5, step=3), created=world.now - 60)
    world.set("train", released=None)
    world.edit(suspend=False)
    world.settle()
    job = world.job("train")
    assert not job.suspended
    world.set("train", released=world.now)
    world.settle()
    assert world.book == [("prepare", 1, "Succeeded"), ("train", 1, "Running")]
    world.run("train")
    world.settle()
    assert (world.status["phase"], world.job("train").name) == ("Training", job.name)
    world.now += 10
    world.end("train", 5, 0, words("train", "stopped", 5, step=9))
    world.settle()
    assert world.book[-1] == ("train", 2, "Running")


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_a_training_is_what_it_was_made_as(make_world: Any, before: int, after: int) -> None:
    """Its time counts on, and its failure is a failure, whatever the next attempt will be."""
    world = make_world(compute=GPU | {"nodes": before}, budget={"maxDuration": "1h"})
    world.share()
    world.through("prepare")
    world.run("train", before)
    world.settle()
    world.now += 100
    world.edit(compute=GPU | {"nodes": after})
    world.settle()
    assert (world.status["phase"], world.condition("Running")) == ("Training", "True")
    assert f"on {before} node" in world.status["message"]
    world.now += 200
    for index in range(before):
        world.end("train", 1, index)
    world.fail("train")
    world.settle()
    assert world.status["attempts"][-1]["outcome"] == "Failed"
    assert (world.usage["trainSeconds"], world.usage["gpuSeconds"]) == (300, 300 * 4 * before)


def test_a_change_that_cannot_work_ends_no_pods_that_run(make_world: Any, prepared: Any, words: Any) -> None:
    """It counts from the next attempt, which then waits for a change that can."""
    world = make_world(training={"optimizer": "paged-adamw"}, compute={"gpuType": "h100"})
    world.prepare(**prepared)
    world.run("train")
    world.settle()
    world.edit(compute={"gpusPerNode": 0})
    world.settle()
    assert world.status["phase"] == "Training"
    world.end("train", 137, disrupted="drain")
    world.fail("train")
    world.settle()
    assert (world.status["reason"], world.condition("Stalled")) == ("InvalidSpec", "True")
    assert world.book[-1] == ("train", 1, "Evicted")
    world.edit(compute={"gpuType": "h100"})
    world.now += 10
    world.settle()
    assert world.book[-1] == ("train", 2, "Running")


def test_a_pod_that_says_it_is_over_budget_refuses_no_plan(make_world: Any, prepared: Any, words: Any) -> None:
    world = make_world()
    world.prepare(**prepared)
    world.run("train")
    world.settle()
    cause = {"code": "OverBudget", "message": "too dear"}
    world.end("train", 3, 0, words("train", "failed", 3, cause=cause))
    world.fail("train")
    world.settle()
    assert (world.status["phase"], world.condition("PlanAccepted")) == ("Failed", "True")


def test_a_status_of_version_0_1_is_understood(make_world: Any, prepared: Any) -> None:
    """Its job trains on with what was frozen and decided then, and its hours count."""
    world = make_world(compute={"gpusPerNode": 4})
    world.prepare(**prepared)
    state = json.loads(world.body["status"].pop("state"))
    old = {name: state[name] for name in ("defaults", "effective", "facts", "decided")}
    world.body["status"] |= old | {"trainSeconds": 100, "gpuSeconds": 400, "infraFailures": 2}
    world.config = replace(world.config, defaults=PlatformDefaults())
    before = world.jobs["bot-" + world.status["run"] + "-train-1"]
    world.run("train")
    world.settle()
    world.now += 50
    world.end("train", 1, text="Traceback")
    world.fail("train")
    drawn = world.settle()
    world.now += drawn.requeue_after
    world.settle()
    assert (world.usage["trainSeconds"], world.usage["gpuSeconds"], world.state["infraFailures"]) == (150, 600, 3)
    assert (
        world.manifests["Job", world.job("train").name]["spec"]["template"]["spec"]["containers"][0]["image"]
        == "trainer:1"
    )
    assert before.attempt == 1
    assert old.items() <= world.status.items(), "so that version 0.1 understands it too"


def test_a_state_that_an_older_version_removed_is_found_out_again(make_world: Any, prepared: Any) -> None:
    world = make_world()
    world.prepare(**prepared)
    world.run("train")
    world.settle()
    for name in ("state", "usage"):
        world.body["status"].pop(name, None)
    world.settle()
    assert world.status["phase"] == "Training", "what runs is kept"
    world.body["status"].pop("state")
    world.end("train", 137, disrupted="drain")
    world.fail("train")
    world.step()
    world.body["status"].pop("state")
    world.now += 10
    drawn = world.settle()
    assert world.book[-1] == ("prepare", 2, "Running"), drawn
    world.run("prepare")
    world.settle()
    world.finish("prepare", **prepared)
    world.settle()
    assert world.book[-1] == ("train", 2, "Running")
    assert world.state["decided"] == prepared["decided"]


def test_a_job_that_was_done_before_any_status_was_written_is_not_run_again(make_world: Any, prepared: Any) -> None:
    world = make_world()
    drawn = world.plan()
    world.step(upto=len(drawn.create))
    world.run("prepare")
    world.finish("prepare", **prepared)
    world.settle()
    assert world.book[0] == ("prepare", 1, "Succeeded")
