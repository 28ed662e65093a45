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
