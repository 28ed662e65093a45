"""What status.progress says of the stage that runs."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_api.contract import Progress
from finetune_operator.domain.observed import ProgressReading


def told(world: Any, **progress: Any) -> dict[str, Any]:
    """What is shown once the running stage's rank 0 has said this."""
    uid = world.plan().poll.uid
    world.progress = ProgressReading(uid, Progress.model_validate(progress))
    world.now += 100  # written at most every so often
    world.settle()
    return world.status["progress"]


def test_an_evaluation_is_shown_as_a_stage_of_its_own(make_world: Any) -> None:
    """It happens in the training pods: steps stay those of the training, and the summary counts rows."""
    world = make_world()
    world.settle()
    world.run("prepare")
    world.settle()
    world.finish("prepare", data={"rows": 10, "trainRows": 8}, plan={"steps": 4})
    world.settle()
    world.run("train")
    world.settle()
    training = {"stage": "train", "step": 3, "totalSteps": 4, "percent": 67, "loss": 0.5, "evalLoss": 0.7}
    shown = told(world, **training)
    assert (shown["stage"], shown["summary"], shown["step"]) == ("train", "67% 3/4", 3)
    told(world, **training | {"step": 4, "percent": 90})
    shown = told(world, stage="evaluate", step=30, totalSteps=80, percent=93)
    assert (shown["stage"], shown["summary"]) == ("evaluate", "93% 30/80 evaluate")
    assert (shown["step"], shown["totalSteps"], shown["loss"]) == (4, 4, 0.5)
    shown = told(world, stage="evaluate", step=60, totalSteps=80, percent=96)
    assert (shown["stage"], shown["loss"]) == ("evaluate", 0.5)
    shown = told(world, **training)
    assert (shown["stage"], shown["summary"]) == ("train", "67% 3/4"), "a full training measures its base first"


def test_a_preparation_that_calls_itself_an_evaluation_is_none(make_world: Any) -> None:
    world = make_world()
    world.settle()
    world.run("prepare")
    world.settle()
    assert told(world, stage="evaluate", percent=50)["stage"] == "prepare"


def test_the_start_of_pods_waits_a_moment_for_their_first_progress(make_world: Any) -> None:
    world = make_world()
    world.settle()
    world.run("prepare")
    drawn = world.plan()
    assert (drawn.just_started, drawn.requeue_after) == (True, pytest.approx(3))
    world.now += 3
    assert not world.plan().just_started, "a late one is not waited for"


def test_what_pods_report_when_they_end_waits_a_moment_for_the_end_of_their_job(make_world: Any) -> None:
    world = make_world()
    world.settle()
    world.run("prepare")
    world.settle()
    world.now += 60
    world.end("prepare", 0)
    drawn = world.plan()
    assert (drawn.just_started, drawn.just_ended) == (False, True)
    world.now += 3
    assert not world.plan().just_ended, "a late one is not waited for"


def test_a_training_that_loads_its_checkpoint_keeps_its_progress(make_world: Any, prepared: Any, words: Any) -> None:
    world = make_world()
    world.prepare(**prepared)
    world.run("train")
    world.settle()
    training = {"stage": "train", "step": 54, "totalSteps": 150, "percent": 30, "lastCheckpoint": {"step": 54}}
    told(world, **training)
    world.end("train", 5, text=words("train", "stopped", 5, step=54, lastCheckpoint={"step": 54}))
    world.settle()
    world.run("train")
    world.settle()
    shown = told(world, stage="train", step=0, totalSteps=150)
    assert (shown["step"], shown["percent"]) == (54, 30)
    assert "lastStep" not in world.status["attempts"][-1]
