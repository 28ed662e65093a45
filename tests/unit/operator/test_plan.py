"""`plan` as tables: what is seen goes in, what should be comes out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_api.contract import CheckpointStatus, Progress, RunConfig
from finetune_api.effective import PlatformDefaults
from finetune_api.pods import PodSettings
from finetune_operator.domain.attempts import start
from finetune_operator.domain.observed import ClaimView, ProgressReading
from finetune_operator.domain.status.conditions import OURS
from finetune_operator.domain.times import stamp


def kinds(plan: Any) -> list[str]:
    return sorted(body["kind"] for body in plan.create)


def test_first_look_creates_prepare_and_tells_where_the_job_stands(make_world: Any) -> None:
    world = make_world()
    drawn = world.step()
    assert kinds(drawn) == ["Job"]
    assert not drawn.status_first, "the first stage does not wait for a status write"
    status = world.status
    assert (status["phase"], status["reason"], status["observedGeneration"]) == ("Preparing", "Starting", 1)
    assert world.state["effective"]["training"]["schedule"] == "cosine"
    assert "learningRate" not in world.state["effective"]["training"], (
        "model and data decide it, which nobody has seen yet"
    )
    assert world.state["defaults"] == {"pods": {"image": "trainer:1"}}
    assert (world.condition("Ready"), world.condition("Reconciling"), world.condition("Running")) == (
        "False",
        "True",
        "False",
    )
    assert [(n.type, n.reason) for n in world.events] == [("Normal", "StageStarted")]
    run = RunConfig.model_validate_json(world.run_config("prepare"))
    assert (run.stage, run.attempt, run.job.run, run.spec.pods) == ("prepare", 1, status["run"], None)


def test_a_run_config_that_no_pod_can_hold_ends_the_job(make_world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "MAX_BYTES", 100)
    world = make_world()
    world.settle()
    assert (world.status["phase"], world.jobs) == ("Failed", {})
    assert "the run config of stage prepare has" in world.status["failure"]["message"]


def test_the_whole_way(make_world: Any) -> None:
    world = make_world(compute={"nodes": 2, "gpusPerNode": 4}, readyWhen="Accepted")
    world.share()
    world.settle()
    world.run("prepare")
    world.settle()
    assert world.condition("Running") == "True"
    world.finish("prepare", data={"rows": 10, "trainRows": 8}, plan={"steps": 4})
    drawn = world.step()
    assert drawn.status_first, "the outcome is on record before the next stage exists"
    assert "train" not in {job.stage for job in world.jobs.values()} or kinds(drawn) == ["Job"]
    assert (world.status["phase"], world.condition("Ready"), world.condition("Reconciling")) == ("Queued", "True", None)
    world.settle()
    assert (world.job("train").suspended, world.job("train").held) == (False, False), "released at once"
    world.run("train", 2)
    world.settle()
    assert (world.status["phase"], world.status["gpus"]) == ("Training", 8)
    world.now += 100
    world.finish("train", 2, step=4, metrics={"loss": 0.5}, evaluation={"rows": 1})
    world.settle()
    assert world.usage["gpuSeconds"] == 800
    world.run("publish")
    world.settle()
    world.finish("publish", artifacts={"uri": "pvc://models/out"})
    world.settle()
    status = world.status
    assert (status["phase"], status["artifacts"]["uri"], status["progress"]["percent"]) == (
        "Completed",
        "pvc://models/out",
        100,
    )
    assert status["usage"]["gpuSeconds"] == 800
    assert {c: world.condition(c) for c in ("Ready", "Complete", "Published", "DataValid", "Running")} == {
        "Ready": "True", "Complete": "True", "Published": "True", "DataValid": "True", "Running": "False",
    }  # fmt: skip
    assert world.book == [("prepare", 1, "Succeeded"), ("train", 1, "Succeeded"), ("publish", 1, "Succeeded")]
    assert [n.reason for n in world.events] == ["StageStarted", "StageDone"] * 3 + ["Completed"]


@pytest.mark.parametrize("stage", ["prepare", "train", "publish"])
def test_suspend_and_resume_in_every_stage(make_world: Any, words: Any, stage: str) -> None:
    world = make_world()
    world.through(*("prepare", "train", "publish")[: ("prepare", "train", "publish").index(stage)])
    world.run(stage)
    world.settle()
    world.edit(suspend=True)
    world.settle()
    assert (world.job(stage).suspended, world.job(stage).held) == (True, True)
    assert world.status["reason"] == "Suspending"
    assert world.condition("Suspended") is None
    world.end(stage, 5, 0, words(stage, "stopped", 5, step=3, lastCheckpoint={"step": 3}))
    world.settle()
    assert (world.status["phase"], world.condition("Suspended")) == ("Suspended", "True")
    accepted = stage != "prepare"
    assert world.condition("Ready") == ("True" if accepted else None)
    assert world.condition("Reconciling") is None
    world.edit(suspend=False)
    world.settle()
    assert world.job(stage).suspended is False
    world.run(stage)
    world.settle()
    assert world.condition("Suspended") == "False"
    assert world.condition("Running") == "True"
    assert len(world.jobs) == len({job.stage for job in world.jobs.values()}), "the same Job goes on"


@pytest.mark.parametrize(
    ("sealed", "shown"),
    [
        (60, "Suspended in stage train with a checkpoint of step 60; "),
        (40, "Suspended in stage train with a checkpoint of step 40, though it had reached step 60 ("),
        (None, "Suspended in stage train, though it had reached step 60 ("),
    ],
)
def test_a_suspension_shows_what_was_not_saved(make_world: Any, sealed: int | None, shown: str) -> None:
    """Its pods were killed at the end of their grace period."""
    world = make_world()
    world.through("prepare")
    world.run("train")
    world.settle()
    progress = Progress(stage="train", percent=50, step=60, last_checkpoint=sealed and CheckpointStatus(step=sealed))
    world.progress = ProgressReading(world.pod("train").uid, progress)
    world.settle()
    world.edit(suspend=True)
    world.settle()
    world.end("train", 137)
    world.settle()
    assert world.status["phase"] == "Suspended"
    assert world.status["message"].startswith(shown)
    assert ("terminationGracePeriodSeconds" in world.status["message"]) == (sealed != 60)


def test_a_job_suspended_from_the_start_creates_nothing(make_world: Any) -> None:
    world = make_world(suspend=True)
    world.settle()
    assert not world.jobs
    assert (world.status["phase"], world.condition("Suspended"), world.condition("Ready")) == (
        "Suspended",
        "True",
        None,
    )


def test_a_queue_is_never_fought(make_world: Any) -> None:
    world = make_world()
    world.through("prepare")
    world.jobs.clear()
    world.queued_elsewhere = True
    world.body["status"]["attempts"] = world.body["status"]["attempts"][:1]
    world.settle()
    assert world.job("train").suspended
    assert (world.status["phase"], world.status["reason"]) == ("Queued", "HeldElsewhere")
    world.set("train", suspended=False)  # admitted
    world.run("train")
    world.settle()
    assert world.status["phase"] == "Training"
    world.edit(suspend=True)
    world.settle()
    assert world.book[-1] == ("train", 1, "Stopped")
    assert any(name.startswith("bot-") for name in world.deleted), "given back whole, since its switch is the queue's"


def test_a_job_suspended_by_a_person_waits_for_that_person(make_world: Any) -> None:
    world = make_world()
    world.settle()
    world.set("prepare", suspended=True)
    world.settle()
    assert world.job("prepare").suspended
    assert world.status["reason"] == "HeldElsewhere"


def test_settings_that_change_before_anything_ran_count_at_once(make_world: Any) -> None:
    world = make_world()
    world.settle()
    world.pod(
        "prepare", node="n", waiting="ImagePullBackOff", waiting_text='Back-off pulling image "x": ErrImagePull: no'
    )
    world.settle()
    assert world.status["reason"] == "ImagePullFailed"
    world.edit(pods={"common": {"image": "trainer:2"}})
    world.settle()
    assert world.book == [("prepare", 1, "Stopped"), ("prepare", 2, "Running")]
    image = world.manifests["Job", world.job("prepare").name]["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image == "trainer:2"
    world.run("prepare")
    world.settle()
    world.edit(pods={"common": {"image": "trainer:3"}})
    world.settle()
    assert world.book[-1] == ("prepare", 2, "Running"), "an attempt that runs keeps its settings"


def test_platform_defaults_are_frozen_when_a_job_is_accepted(make_world: Any) -> None:
    world = make_world()
    world.settle()
    world.config = replace(
        world.config, defaults=world.config.defaults.model_validate({"pods": {"image": "trainer:9"}})
    )
    world.run("prepare")
    world.finish("prepare")
    world.settle()
    train = world.manifests["Job", world.job("train").name]
    assert train["spec"]["template"]["spec"]["containers"][0]["image"] == "trainer:1"


@pytest.mark.parametrize("phase", ["Completed", "Failed"])
def test_terminal_is_terminal(make_world: Any, phase: str) -> None:
    world = make_world()
    if phase == "Completed":
        world.through("prepare", "train", "publish")
    else:
        world.settle()
        world.end("prepare", 3)
        world.fail("prepare")
        world.settle()
    assert world.status["phase"] == phase
    world.jobs.clear()
    world.pods.clear()
    world.now += 1e6
    world.edit(suspend=True)
    drawn = world.settle()
    assert not drawn.create
    assert world.status["phase"] == phase


def test_a_new_run_token_runs_again_after_the_end_and_not_before(make_world: Any) -> None:
    world = make_world()
    world.through("prepare")
    first = world.status["run"]
    world.edit(runToken="again")
    world.settle()
    assert world.status["run"] == first, "a run is not cut short"
    world.through("train")
    world.run("publish")
    world.finish("publish")
    old = set(world.jobs)
    # The end is seen before the new run begins.
    drawn = world.step()
    assert world.status["phase"] == "Completed"
    assert not drawn.create
    world.settle()
    assert world.status["run"] != first
    assert world.book == [("prepare", 1, "Running")]
    assert world.status.get("data") is None
    assert not old & set(world.jobs), "the children of the run before are gone"
    assert world.status["observedGeneration"] == 2
    world.through("prepare", "train", "publish")
    assert world.status["phase"] == "Completed"


def test_a_run_token_that_comes_back_starts_a_run_of_its_own(make_world: Any) -> None:
    """It must not meet the folder, the checkpoints and the children of the run that had the token before."""
    world = make_world(runToken="a")
    runs = []
    for token in ("a", "b", "a", "b", "b", "a", None):
        world.edit(runToken=token)
        world.settle()
        world.settle()
        runs.append(world.status["run"])
        world.through("prepare", "train", "publish")
        assert (world.status["phase"], world.status["run"]) == ("Completed", runs[-1])
    assert runs[3] == runs[4], "the token did not change"
    assert len(set(runs)) == 6
    assert world.status["startTime"]


def test_time_to_live_takes_the_children_and_nothing_else(make_world: Any) -> None:
    world = make_world(ttlSecondsAfterFinished=60)
    world.through("prepare", "train", "publish")
    drawn = world.settle()
    assert 0 < drawn.requeue_after <= 60
    assert len(world.jobs) == 3
    world.now += 61
    world.settle()
    assert not world.jobs
    assert world.status["phase"] == "Completed"


@pytest.mark.parametrize(("platform", "own", "kept"), [(60, None, 0), (60, 600, 3), (None, None, 3)])
def test_time_to_live_of_the_platform(make_world: Any, platform: int | None, own: int | None, kept: int) -> None:
    """Frozen at acceptance, beneath the job's own."""
    world = make_world(**({"ttlSecondsAfterFinished": own} if own is not None else {}))
    world.config = replace(
        world.config, defaults=PlatformDefaults(pods=PodSettings(image="i"), ttl_seconds_after_finished=platform)
    )
    world.through("prepare", "train", "publish")
    world.config = replace(
        world.config, defaults=PlatformDefaults(pods=PodSettings(image="i"), ttl_seconds_after_finished=1)
    )
    world.settle()
    assert len(world.jobs) == 3
    world.now += 61
    world.settle()
    assert len(world.jobs) == kept


def test_no_child_is_deleted_before_the_end_is_on_record(make_world: Any) -> None:
    world = make_world(ttlSecondsAfterFinished=0)
    world.through("prepare", "train")
    world.run("publish")
    world.finish("publish")
    drawn = world.plan()
    assert drawn.status.phase == "Completed"
    assert drawn.delete == ()
    assert drawn.requeue_after == 0


@pytest.mark.parametrize("gone", [{"managed_by": "other.example/x"}, {"deleting": True}])
def test_what_is_not_ours_is_left_alone(make_world: Any, gone: dict[str, Any]) -> None:
    world = make_world(**({"managedBy": gone["managed_by"]} if "managed_by" in gone else {}))
    if gone.get("deleting"):
        world.body["metadata"]["deletionTimestamp"] = stamp(world.now)
    drawn = world.plan()
    assert drawn.status is None
    assert not drawn.create


@pytest.mark.parametrize(
    ("scratch", "models", "phase", "reason"),
    [
        (("ReadWriteOnce",), ("ReadWriteMany",), "Pending", "InvalidWorkspace"),
        (("ReadOnlyMany",), ("ReadWriteMany",), "Pending", "InvalidWorkspace"),
        (("ReadWriteMany",), ("ReadWriteOnce",), "Pending", "ClaimNotShared"),
        (False, ("ReadWriteMany",), "Pending", "MissingClaim"),
        (("ReadWriteOnce", "ReadWriteMany"), ("ReadOnlyMany",), "Preparing", "Starting"),
        (None, None, "Preparing", "Starting"),
    ],
)
def test_several_nodes_need_claims_that_they_can_share(
    make_world: Any, scratch: Any, models: Any, phase: str, reason: str
) -> None:
    world = make_world(compute={"device": "cpu", "nodes": 2})
    drawn = world.step()
    assert {(read.kind, read.name) for read in drawn.reads} == {("claim", "scratch"), ("claim", "models")}
    assert not drawn.create
    for name, modes in (("scratch", scratch), ("models", models)):
        found = modes if modes is None or modes is False else True
        world.claims[name] = ClaimView(name, found, modes or ())
    world.settle()
    assert (world.status["phase"], world.status["reason"]) == (phase, reason)
    if phase == "Pending":
        assert world.condition("Stalled") == "True"
        assert "scratch" in world.status["message"] or reason == "ClaimNotShared"
        world.edit(compute={"device": "cpu", "nodes": 1})
        world.settle()
        assert world.status["reason"] == "Starting"


def test_ready_when_completed(make_world: Any) -> None:
    world = make_world(readyWhen="Completed")
    world.through("prepare")
    assert (world.condition("Ready"), world.condition("Reconciling"), world.condition("PlanAccepted")) == (
        "False",
        "True",
        "True",
    )
    world.edit(suspend=True)
    world.settle()
    world.end("train", 5) if world.pods[world.job("train").name] else None
    world.settle()
    assert (world.condition("Suspended"), world.condition("Ready")) == ("True", "False")
    world.edit(suspend=False)
    world.through("train", "publish")
    assert (world.condition("Ready"), world.condition("Reconciling")) == ("True", None)


def test_conditions_of_other_controllers_stay(make_world: Any) -> None:
    world = make_world()
    world.settle()
    theirs = {
        "type": "example.com/Audited",
        "status": "True",
        "reason": "Done",
        "lastTransitionTime": "2027-01-15T08:00:00Z",
    }
    world.body["status"]["conditions"].append(theirs)
    world.run("prepare")
    world.settle()
    kinds = {condition["type"] for condition in world.status["conditions"]}
    assert kinds - OURS == {"example.com/Audited"}
