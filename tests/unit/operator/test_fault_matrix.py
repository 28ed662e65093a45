"""Every standing of an attempt, under every wish, in every stage: the table is whole and what must never happen does not."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from finetune_api.status import STAGES, Stage
from finetune_operator.domain.attempts.reconcile import _STEPS
from finetune_operator.domain.attempts.standing import Standing, classify
from finetune_operator.domain.attempts.steps import Step, Wish, decide
from finetune_operator.domain.observed import Ended, OtherContainer

BEFORE: dict[Stage, list[str]] = {"prepare": [], "train": ["prepare"], "publish": ["prepare", "train"]}
NODES = 2


def not_created(world: Any, stage: Stage) -> None:
    world.jobs.pop(world.job(stage).name)


def vanished(world: Any, stage: Stage) -> None:
    running(world, stage)
    name = world.job(stage).name
    del world.jobs[name]
    world.pods[name] = {}
    world.jobs_read[name] = False


def queued(world: Any, stage: Stage) -> None:
    world.set(stage, suspended=True, managed_elsewhere=True)


def held(world: Any, stage: Stage) -> None:
    world.set(stage, suspended=True, held=True)


def starting(world: Any, stage: Stage) -> None:
    world.set(stage, suspended=False, held=False)
    world.pod(stage)


def running(world: Any, stage: Stage) -> None:
    world.set(stage, suspended=False, held=False)
    world.run(stage, world.job(stage).pods)
    world.step()


def stopping(world: Any, stage: Stage) -> None:
    running(world, stage)
    world.set(stage, deleting=True)


def stopped(world: Any, stage: Stage) -> None:
    running(world, stage)
    for index in range(world.job(stage).pods):
        world.end(stage, 5, index)


def node_lost(world: Any, stage: Stage) -> None:
    running(world, stage)
    world.pod(stage, 0, deletion_asked=world.now, deletion_due=world.now + 30)
    world.now += 331


def failing(world: Any, stage: Stage) -> None:
    running(world, stage)
    ended = Ended(1, "Error", "", world.now, world.now)
    world.pod(stage, 0, running_since=None, ended=ended)


def failed(world: Any, stage: Stage) -> None:
    running(world, stage)
    for index in range(world.job(stage).pods):
        world.end(stage, 1, index)
    world.fail(stage)


def complete(world: Any, stage: Stage) -> None:
    running(world, stage)
    world.finish(stage, world.job(stage).pods)


SITUATIONS = {
    Standing.NOT_CREATED: not_created,
    Standing.VANISHED: vanished,
    Standing.QUEUED: queued,
    Standing.HELD: held,
    Standing.STARTING: starting,
    Standing.RUNNING: running,
    Standing.STOPPING: stopping,
    Standing.STOPPED: stopped,
    Standing.NODE_LOST: node_lost,
    Standing.FAILING: failing,
    Standing.FAILED: failed,
    Standing.COMPLETE: complete,
}
ENDED = (Standing.VANISHED, Standing.STOPPED, Standing.NODE_LOST, Standing.FAILED, Standing.COMPLETE)
LIVE = (Standing.STARTING, Standing.RUNNING, Standing.STOPPING, Standing.FAILING)


def wish_for(world: Any, wish: Wish) -> None:
    match wish:
        case Wish.SUSPEND:
            world.edit(suspend=True)
        case Wish.WITHDRAW:
            world.edit(budget={"approval": "Manual"})
        case Wish.SPEND_NOTHING:
            world.edit(budget={"maxDuration": "1s"})
            world.body["status"]["usage"] = {"trainSeconds": 5}
        case Wish.BLOCK:
            world.body["status"]["state"] = json.dumps(world.state | {"defaults": {}})
        case Wish.REPLACE:
            world.edit(pods={"common": {"image": "trainer:2"}})
        case Wish.RUN:
            pass


def test_the_table_is_whole() -> None:
    assert set(SITUATIONS) == set(Standing)
    assert set(_STEPS) == set(Step)
    used = {decide(standing, wish) for standing, wish in itertools.product(Standing, Wish)}
    assert used == set(Step), "no step that no case leads to"


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("wish", Wish)
@pytest.mark.parametrize("standing", Standing)
def test_standing_times_wish_times_stage(
    make_world: Any, prepared: Any, standing: Standing, wish: Wish, stage: Stage
) -> None:
    world = make_world(compute={"device": "cpu", "nodes": NODES}, retry={"infra": 100})
    world.share()
    for before in BEFORE[stage]:
        world.settle()
        count = NODES if before == "train" else 1
        world.run(before, count)
        world.settle()
        world.finish(before, count, **(prepared if before == "prepare" else {}))
    world.settle()
    SITUATIONS[standing](world, stage)
    attempt = world.observed().job.status.attempts[-1]
    job, pods = world.jobs.get(attempt.job), tuple(world.pods.get(attempt.job, {}).values())
    assert classify(attempt, job, pods, world.now) == standing
    wish_for(world, wish)
    history = len(world.book)
    jobs, started = dict(world.jobs), attempt.started is not None
    drawn = world.step()

    status = world.status
    assert status["phase"] not in ("Failed",), status["message"]
    assert status["reason"]
    assert status["message"]
    creates = [body["metadata"]["name"] for body in drawn.create if body["kind"] == "Job"]
    others = [name for name in creates if name != attempt.job]
    alive = standing in LIVE
    assert not (others and alive), "two gangs side by side"
    if standing in (Standing.RUNNING, Standing.STARTING) and wish in (Wish.BLOCK, Wish.RUN):
        assert not drawn.delete, "what runs is kept"
        assert not drawn.patch
    if standing == Standing.RUNNING and started and wish in (Wish.WITHDRAW, Wish.REPLACE):
        assert not drawn.delete, "what was accepted and runs is not taken back"
    if standing in ENDED:
        assert world.status["attempts"][history - 1]["outcome"] != "Running", "an end is recorded, whatever is wanted"
    if wish == Wish.SUSPEND:
        assert not creates
        released = [p for p in drawn.patch if not p.body["spec"]["suspend"]]
        assert not released
        if alive:
            assert status["phase"] != "Suspended", "not before its pods have ended"
    if wish == Wish.BLOCK and standing == Standing.NOT_CREATED:
        assert not creates
    assert len(world.book) <= 20
    assert set(jobs) >= {delete.name for delete in drawn.delete}
    # Repeating it with nothing changed settles.
    world.settle()


@pytest.mark.parametrize("exit_code", [0, 1, 3, 5])
def test_a_sidecar_that_outlives_the_trainer_does_not_hold_the_stage(
    make_world: Any, words: Any, exit_code: int
) -> None:
    world = make_world()
    world.settle()
    world.run("prepare")
    world.settle()
    outcome = {0: "succeeded", 5: "stopped"}.get(exit_code, "failed")
    ended = Ended(exit_code, "Error", words("prepare", outcome, exit_code), world.now, world.now)
    proxy = OtherContainer("proxy", "running")
    world.pod("prepare", running_since=None, ended=ended, others=(proxy,))
    drawn = world.settle()
    assert drawn.requeue_after is not None
    world.now += 31
    world.settle()
    expected = {0: "Succeeded", 5: "Stopped"}.get(exit_code, "Failed")
    assert world.book[0] == ("prepare", 1, expected)
    assert world.status["attempts"][0]["job"] in world.deleted
    assert "Container proxy kept pod" in world.status["attempts"][0]["message"]


def test_a_job_that_is_deleted_gives_its_gpus_back_before_a_foreign_finalizer_lets_it_go(make_world: Any) -> None:
    world = make_world()
    world.through("prepare")
    world.run("train")
    world.settle()
    world.body["metadata"]["deletionTimestamp"] = "2027-01-15T08:00:00Z"
    drawn = world.plan()
    assert drawn.status is None
    assert {delete.name for delete in drawn.delete} == set(world.jobs)
    assert all(delete.uid for delete in drawn.delete)
