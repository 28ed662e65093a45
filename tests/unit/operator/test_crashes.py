"""An operator that ends between two writes, and what people change before the next one looks."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.mark.parametrize("stage", ["prepare", "train"])
def test_a_job_that_no_status_tells_of_does_not_outlive_a_change_of_mind(make_world: Any, stage: str) -> None:
    """A queue would let it run."""
    world = make_world()
    world.queued_elsewhere = True
    if stage == "train":
        world.through("prepare")
        world.set("train", suspended=False)
        world.run("train")
        world.settle()
        world.end("train", 137, disrupted="drain")
        world.fail("train")
        world.settle()
        world.now += 6
    drawn = world.plan()
    assert [body["kind"] for body in drawn.create][-1] == "Job"
    world.step(upto=len(drawn.create))
    name = world.job(stage).name
    assert name not in [attempt["job"] for attempt in world.status.get("attempts", [])]
    world.known.clear()
    world.edit(suspend=True)
    world.settle()
    assert world.status["phase"] == "Suspended"
    assert name not in world.jobs
    world.edit(suspend=False)
    world.settle()
    assert name in world.jobs


def test_a_job_from_before_a_crash_is_kept_by_a_clock_that_is_a_moment_behind(make_world: Any) -> None:
    """After a restart the API server's time is known to the second only: the pause before the attempt may seem not to be over."""
    world = make_world(retry={"infra": 1})
    world.through("prepare")
    world.run("train")
    world.settle()
    world.end("train", 1)
    world.fail("train")
    drawn = world.settle()
    world.now += drawn.requeue_after
    drawn = world.plan()
    assert [body["kind"] for body in drawn.create] == ["Job"]
    world.step(upto=1)
    job = world.job("train")
    assert job.attempt == 2
    world.now -= 0.5
    world.settle()
    assert world.jobs[job.name].uid == job.uid
    assert world.book[-2:] == [("train", 1, "Failed"), ("train", 2, "Running")]
