"""What a training has run counts, whoever looked when, and counts once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_operator.domain.observed import JobView

GPU = {"nodes": 1, "gpusPerNode": 4}
AWAY = 9 * 3600


@pytest.fixture
def world(make_world: Any) -> Any:
    """Its training may take an hour, and no pod of it runs yet."""
    made = make_world(compute=GPU, budget={"maxDuration": "1h"})
    made.through("prepare")
    assert not made.job("train").suspended
    return made


def counted(world: Any) -> tuple[int, int]:
    """Also where a rollback reads it, whose CRD prunes `usage`."""
    for field in ("trainSeconds", "gpuSeconds"):
        assert world.status.get(field) == world.usage.get(field)
    return world.usage.get("trainSeconds", 0), world.usage.get("gpuSeconds", 0)


def test_what_is_left_of_an_earlier_attempt_ends_nothing(world: Any) -> None:
    """A lost node comes back, and the Job that waited for it has failed at last."""
    world.run("train")
    world.settle()
    first = world.job("train")
    world.now += 100
    world.pod("train", deletion_asked=world.now, deletion_due=world.now + 30)
    world.set("train", failing=world.now, failure="x")
    world.settle()
    world.now += 400
    world.settle()
    world.now += 10
    world.settle()
    world.run("train")
    world.settle()
    assert world.job("train").name != first.name
    world.now += 50
    world.jobs[first.name] = replace(first, failing=world.now - 460, failed=world.now)
    world.pods[first.name] = {}
    world.settle()
    world.now += 3600
    world.settle()
    assert world.job("train").suspended
    assert counted(world) == (3750, 15_000)


@pytest.mark.parametrize("seconds", [600, 2 * 3600])
def test_a_training_that_began_while_nobody_looked(world: Any, seconds: int) -> None:
    world.now += 30
    world.run("train")
    world.now += seconds
    drawn = world.settle()
    if seconds < 3600:
        assert drawn.requeue_after == pytest.approx(3600 - seconds)
        world.now += 3600 - seconds
        world.settle()
    assert world.job("train").suspended
    spent = max(seconds, 3600)
    assert counted(world) == (spent, 4 * spent)
    for _ in range(3):  # its pods save a checkpoint
        world.now += 20
        world.settle()
    assert counted(world) == (spent, 4 * spent)


def test_a_training_that_began_and_failed_while_nobody_looked(world: Any) -> None:
    world.run("train")
    began = world.now
    world.now += 2000
    pod = world.pod("train", node="node-0", **world.ended(1))
    world.pods[world.job("train").name] = {pod.name: replace(pod, ended=replace(pod.ended, started=began))}
    world.fail("train")
    world.now += AWAY
    world.settle()
    assert (world.book[-1][2], counted(world)) == ("Failed", (2000, 8000))


def test_pods_that_were_replaced_while_nobody_looked(world: Any, words: Any) -> None:
    world.run("train")
    world.settle()
    world.now += 100
    world.end("train", 5, 0, words("train", "stopped", 5, step=3))
    world.now += 20
    world.run("train")
    world.now += 500
    drawn = world.settle()
    assert (world.status["phase"], counted(world)) == ("Training", (100, 400))
    assert drawn.requeue_after == pytest.approx(3000)
    world.now += 3000
    world.settle()
    assert counted(world) == (3600, 14_400)


def test_a_queue_that_took_the_nodes_back_while_nobody_looked(make_world: Any) -> None:
    world = make_world(compute=GPU, budget={"maxDuration": "1h"})
    world.queued_elsewhere = True
    world.through("prepare")
    world.set("train", suspended=False)
    world.run("train")
    world.settle()
    world.now += 100
    world.set("train", suspended=True, suspended_since=world.now)
    world.pods[world.job("train").name] = {}
    world.now += AWAY
    world.settle()
    assert (world.status["reason"], counted(world)) == ("HeldElsewhere", (100, 400))


@pytest.mark.parametrize("seconds", [0, 300])
def test_a_pause_that_is_taken_back_counts_nothing_twice(world: Any, seconds: int) -> None:
    """Before the Job controller saw it: the same pods run on."""
    world.run("train")
    world.now += 500
    world.settle()
    world.edit(suspend=True)
    world.step()
    world.now += seconds
    world.edit(suspend=False)
    world.settle()
    world.now += 100
    world.settle()
    world.edit(suspend=True)
    world.settle()
    assert counted(world)[0] in range(600, 600 + seconds + 2)


@pytest.mark.parametrize(("suspend", "since"), [(True, 1_800_000_000.0), (False, None)])
def test_since_when_a_job_is_suspended(suspend: bool, since: float | None) -> None:
    """As the Job controller says; of a Job that was released its word may be an old one."""
    told = {"type": "Suspended", "status": "True", "lastTransitionTime": "2027-01-15T08:00:00Z"}
    body = {"metadata": {"name": "j", "uid": "u"}, "spec": {"suspend": suspend}, "status": {"conditions": [told]}}
    assert JobView.of(body).suspended_since == since


@pytest.mark.parametrize(
    ("told", "since"), [({}, 0.0), ({"status": "True"}, None), ({"status": "False"}, 1_800_000_000.0)]
)
def test_since_when_a_job_is_released(told: dict[str, str], since: float | None) -> None:
    """As the Job controller says, whatever the spec says by now."""
    condition = {"type": "Suspended", "lastTransitionTime": "2027-01-15T08:00:00Z", **told}
    body = {"metadata": {"name": "j", "uid": "u"}, "spec": {}, "status": {"conditions": [condition] if told else []}}
    assert JobView.of(body).released == since
