"""`plan` as tables: what is seen goes in, what should be comes out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_api.contract import RunConfig
from finetune_operator.domain.observed import ClaimView, Refusal
from finetune_operator.domain.times import stamp


def kinds(plan: Any) -> list[str]:
    return sorted(body["kind"] for body in plan.create)


def test_first_look_creates_prepare_and_tells_where_the_job_stands(make_world: Any) -> None:
    world = make_world()
    drawn = world.step()
    assert kinds(drawn) == ["ConfigMap", "Job"]
    assert not drawn.status_first, "the first stage does not wait for a status write"
    status = world.status
    assert (status["phase"], status["reason"], status["observedGeneration"]) == ("Preparing", "Starting", 1)
    assert status["effective"]["training"]["learningRate"] == 2e-4
    assert status["defaults"] == {"pods": {"image": "trainer:1"}}
    assert (world.condition("Ready"), world.condition("Reconciling"), world.condition("Running")) == (
        "False",
        "True",
        "False",
    )
    assert [(n.type, n.reason) for n in world.notes] == [("Normal", "StageStarted")]
    config = world.manifests["ConfigMap", world.job("prepare").name]["data"]["run.json"]
    run = RunConfig.model_validate_json(config)
    assert (run.stage, run.attempt, run.job.run, run.spec.pods) == ("prepare", 1, status["run"], None)


def test_the_whole_way(make_world: Any) -> None:
    world = make_world(compute={"nodes": 2, "gpusPerNode": 4}, readyWhen="Accepted")
    world.claims["scratch"] = ClaimView("scratch", True, ("ReadWriteMany",))
    world.settle()
    world.run("prepare")
    world.settle()
    assert world.condition("Running") == "True"
    world.finish("prepare", data={"rows": 10, "trainRows": 8}, plan={"steps": 4})
    drawn = world.step()
    assert drawn.status_first, "the outcome is on record before the next stage exists"
    assert "train" not in {job.stage for job in world.jobs.values()} or kinds(drawn) == ["ConfigMap", "Job", "Service"]
    assert (world.status["phase"], world.condition("Ready"), world.condition("Reconciling")) == ("Queued", "True", None)
    world.settle()
    assert (world.job("train").suspended, world.job("train").held) == (False, False), "released at once"
    world.run("train", 2)
    world.settle()
    assert (world.status["phase"], world.status["gpus"]) == ("Training", 8)
    world.now += 100
    world.finish("train", 2, step=4, metrics={"loss": 0.5}, evaluation={"rows": 1})
    world.settle()
    assert world.status["gpuSeconds"] == 800
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
    assert status["gpuSeconds"] == 800
    assert {c: world.condition(c) for c in ("Ready", "Complete", "Published", "DataValid", "Running")} == {
        "Ready": "True", "Complete": "True", "Published": "True", "DataValid": "True", "Running": "False",
    }  # fmt: skip
    assert world.book == [("prepare", 1, "Succeeded"), ("train", 1, "Succeeded"), ("publish", 1, "Succeeded")]
    assert [n.reason for n in world.notes] == ["StageStarted", "StageDone"] * 3 + ["Completed"]


@pytest.mark.parametrize("stage", ["prepare", "train", "publish"])
@pytest.mark.parametrize(
    ("exit_code", "reason", "code"),
    [
        (3, "Error", "BadInput"),
        (4, "Error", "OutOfMemory"),
        (6, "Error", "Diverged"),
        (137, "OOMKilled", "OutOfMemory"),
    ],
)
def test_what_is_never_retried(make_world: Any, stage: str, exit_code: int, reason: str, code: str) -> None:
    world = make_world()
    world.through(*("prepare", "train", "publish")[: ("prepare", "train", "publish").index(stage)])
    world.run(stage)
    world.settle()
    world.end(stage, exit_code, reason=reason)
    world.fail(stage)
    world.settle()
    status = world.status
    assert (status["phase"], status["failure"]["code"], status["failure"]["stage"]) == ("Failed", code, stage)
    assert status["failure"]["remedy"]
    assert status["failure"]["retriable"] is False
    assert (world.condition("Stalled"), world.condition("Failed"), world.condition("Ready")) == (
        "True",
        "True",
        "False",
    )
    jobs = set(world.jobs)
    world.now += 10_000
    world.settle()
    assert set(world.jobs) == jobs


def test_the_trainers_sentence_is_the_failure(make_world: Any, words: Any) -> None:
    world = make_world()
    world.settle()
    cause = {"code": "InvalidData", "message": "train.jsonl line 7: no answer", "remedy": "Add one"}
    world.end("prepare", 3, text=words("prepare", "failed", 3, cause=cause))
    world.fail("prepare")
    world.settle()
    failure = world.status["failure"]
    assert (failure["code"], failure["message"], failure["remedy"]) == (
        "InvalidData",
        cause["message"],
        cause["remedy"],
    )
    assert (failure["rank"], failure["node"], failure["exitCode"]) == (0, "node-0", 3)
    assert world.condition("DataValid") == "False"
    assert world.status["message"] == "train.jsonl line 7: no answer. Add one"


def test_the_budget_for_unknown_failures(make_world: Any) -> None:
    world = make_world(retry={"infra": 2})
    world.settle()
    waits = []
    for attempt in range(1, 4):
        assert world.job("prepare").attempt == attempt
        world.run("prepare")
        world.settle()
        world.end("prepare", 1, text="Traceback\nValueError: token=hf_abcdefghijk")
        world.fail("prepare")
        drawn = world.settle()
        assert world.book[-1] == ("prepare", attempt, "Failed")
        if attempt < 3:
            waits.append(drawn.look_again)
            assert world.status["reason"] == "Retrying"
            world.now += drawn.look_again
            world.settle()
    assert waits == [10, 20]
    failure = world.status["failure"]
    assert (world.status["phase"], world.status["infraFailures"], failure["code"]) == ("Failed", 3, "Unknown")
    assert "spec.retry.infra 2 is used up" in failure["message"]
    assert "ValueError" in failure["message"]
    assert "hf_" not in failure["message"]
    previous = world.manifests["Job", world.job("prepare").name]["metadata"]["annotations"][
        "finetune.dev/previous-attempt"
    ]
    assert '"attempt": 2' in previous


def disrupted(world: Any) -> None:
    world.end("train", 137, 1, disrupted="EvictionByEvictionAPI: drained")


def evicted(world: Any) -> None:
    world.end("train", 137, 1)
    world.pod("train", 1)
    pods = world.pods[world.job("train").uid]
    for name, pod in pods.items():
        if pod.index == 1 and pod.over:
            pods[name] = replace(pod, reason="Evicted", text="The node was low on resource: memory")


def deleted(world: Any) -> None:
    world.end("train", 137, 1, deletion_asked=world.now - 5, deletion_due=world.now)


def node_lost(world: Any) -> None:
    world.pod("train", 1, deletion_asked=world.now, deletion_due=world.now + 120)
    world.set("train", failing=world.now)
    world.settle()
    assert world.book[-1][2] == "Running", "its end is waited for"
    world.now += 120 + 301


def vanished(world: Any) -> None:
    job = world.job("train")
    world.pods[job.uid] = {name: pod for name, pod in world.pods[job.uid].items() if pod.index == 0}


@pytest.mark.parametrize("happens", [disrupted, evicted, deleted, node_lost, vanished])
def test_disruption_is_nobodys_error(make_world: Any, words: Any, happens: Any) -> None:
    world = make_world(compute={"device": "cpu", "nodes": 2}, retry={"infra": 0})
    world.claims["scratch"] = ClaimView("scratch", True, ("ReadWriteMany",))
    world.through("prepare")
    world.run("train", 2)
    world.settle()
    world.now += 60
    # The other rank loses its peer, and says so.
    world.end("train", 7, 0, words("train", "failed", 7, time=world.now, step=9, lastCheckpoint={"step": 8}))
    happens(world)
    if happens is not node_lost:
        world.fail("train")
    world.now += 6
    drawn = world.settle()
    assert world.book[-1] == ("train", 1, "Evicted")
    assert world.status.get("infraFailures") is None
    assert (world.status["phase"], world.status["reason"], world.condition("Ready")) == ("Queued", "Resuming", "True")
    world.now += drawn.look_again
    world.settle()
    assert world.book[-1] == ("train", 2, "Running")
    assert world.status["lastCheckpoint"]["step"] == 8
    assert world.notes[-2].type == "Warning"
    assert "goes on from step 8" in world.notes[-2].text


def test_a_gang_that_the_job_controller_ended_is_not_taken_for_evicted(make_world: Any) -> None:
    world = make_world(compute={"device": "cpu", "nodes": 2})
    world.claims["scratch"] = ClaimView("scratch", True, ("ReadWriteMany",))
    world.through("prepare")
    world.run("train", 2)
    world.settle()
    world.end("train", 1, 1, "Segmentation fault")
    # The controller deletes rank 0 in the same second.
    world.end("train", 143, 0, deletion_asked=world.now, deletion_due=world.now + 120)
    world.fail("train")
    world.settle()
    assert world.book[-1] == ("train", 1, "Failed")
    assert world.status["infraFailures"] == 1


def test_a_known_cause_is_believed_before_a_disruption(make_world: Any) -> None:
    world = make_world()
    world.settle()
    world.end("prepare", 3, disrupted="EvictionByEvictionAPI: drained")
    world.fail("prepare")
    world.settle()
    assert world.status["failure"]["code"] == "BadInput"


def test_a_job_that_ran_and_is_gone_counts_as_evicted_and_one_that_never_ran_is_made_again(make_world: Any) -> None:
    world = make_world()
    world.settle()
    del world.jobs[world.job("prepare").name]
    world.settle()
    assert world.book == [("prepare", 1, "Running")]
    world.run("prepare")
    world.settle()
    del world.jobs[world.job("prepare").name]
    drawn = world.settle()
    assert world.book == [("prepare", 1, "Evicted")]
    world.now += drawn.look_again
    world.settle()
    assert world.book == [("prepare", 1, "Evicted"), ("prepare", 2, "Running")]


@pytest.mark.parametrize("queued", [False, True])
def test_a_stop_with_a_checkpoint_goes_on_at_once(make_world: Any, words: Any, queued: bool) -> None:
    """In a new Job, since the Job controller would hold a gang of seven back for ten minutes; in the same one if a queue owns it."""
    world = make_world(compute={"device": "cpu", "nodes": 2})
    world.claims["scratch"] = ClaimView("scratch", True, ("ReadWriteMany",))
    world.queued_elsewhere = queued
    world.through("prepare")
    if queued:
        world.set("train", suspended=False)
    world.run("train", 2)
    world.settle()
    stop = words("train", "stopped", 5, step=7, lastCheckpoint={"step": 7})
    world.end("train", 5, 0, stop, deletion_asked=world.now)
    world.settle()
    assert world.book[-1] == ("train", 1, "Running"), "the other rank is still stopping"
    world.end("train", 5, 1, stop)
    world.settle()
    assert world.status["lastCheckpoint"]["step"] == 7
    if queued:
        assert (world.book[-1], world.status["reason"]) == (("train", 1, "Running"), "Resuming")
    else:
        assert world.book[-2:] == [("train", 1, "Stopped"), ("train", 2, "Running")]
        assert [job.attempt for job in world.jobs.values() if job.stage == "train"] == [2]
        # Over and over is not at once.
        world.run("train", 2)
        world.settle()
        world.end("train", 5, 0, stop)
        world.end("train", 5, 1, stop)
        assert world.settle().look_again == 5
    assert world.status.get("infraFailures") is None


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
    assert any(name.startswith("Job/bot-") for name in world.deleted), (
        "given back whole, since its switch is the queue's"
    )


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


def test_time_to_live_takes_the_children_and_nothing_else(make_world: Any) -> None:
    world = make_world(ttlSecondsAfterFinished=60)
    world.through("prepare", "train", "publish")
    drawn = world.settle()
    assert 0 < drawn.look_again <= 60
    assert len(world.jobs) == 3
    world.now += 61
    world.settle()
    assert not world.jobs
    assert len([name for name in world.deleted if name.startswith("ConfigMap/")]) == 3
    assert world.status["phase"] == "Completed"


def test_no_child_is_deleted_before_the_end_is_on_record(make_world: Any) -> None:
    world = make_world(ttlSecondsAfterFinished=0)
    world.through("prepare", "train")
    world.run("publish")
    world.finish("publish")
    drawn = world.plan()
    assert drawn.status.phase == "Completed"
    assert drawn.delete == ()
    assert drawn.look_again == 0


def test_the_book_forgets_disruptions_before_successes(make_world: Any) -> None:
    world = make_world()
    world.through("prepare")
    for _ in range(25):
        world.run("train")
        world.settle()
        world.end("train", 137, disrupted="drain")
        world.fail("train")
        world.settle()
        world.now += 400
        world.settle()
    assert len(world.book) == 20
    assert world.book[0] == ("prepare", 1, "Succeeded")
    assert world.book[-1] == ("train", 26, "Running")
    assert len(world.jobs) <= 4, "pods of old attempts are cleaned up"


@pytest.mark.parametrize("gone", [{"managed_by": "other.example/x"}, {"deleting": True}])
def test_what_is_not_ours_is_left_alone(make_world: Any, gone: dict[str, Any]) -> None:
    world = make_world(**({"managedBy": gone["managed_by"]} if "managed_by" in gone else {}))
    if gone.get("deleting"):
        world.body["metadata"]["deletionTimestamp"] = stamp(world.now)
    drawn = world.plan()
    assert drawn.status is None
    assert not drawn.create


@pytest.mark.parametrize(
    ("claim", "phase", "reason"),
    [
        (ClaimView("scratch", True, ("ReadWriteOnce",)), "Failed", "InvalidWorkspace"),
        (ClaimView("scratch", False), "Pending", "MissingClaim"),
        (ClaimView("scratch", True, ("ReadWriteOnce", "ReadWriteMany")), "Preparing", "Starting"),
        (ClaimView("scratch", None), "Preparing", "Starting"),
    ],
)
def test_several_nodes_need_a_workspace_that_they_can_share(
    make_world: Any, claim: ClaimView, phase: str, reason: str
) -> None:
    world = make_world(compute={"device": "cpu", "nodes": 2})
    drawn = world.step()
    assert [(read.kind, read.name) for read in drawn.reads] == [("claim", "scratch")]
    assert not drawn.create
    world.claims["scratch"] = claim
    world.settle()
    assert (world.status["phase"], world.status["reason"]) == (phase, reason)
    if phase == "Failed":
        assert "ReadWriteMany" in world.status["failure"]["message"]
        assert "compute.nodes: 1" in world.status["failure"]["remedy"]


@pytest.mark.parametrize(
    ("code", "message", "phase", "reason"),
    [
        (422, "spec.template.spec.volumes[0].name: Duplicate value", "Failed", "InvalidSpec"),
        (409, "", "Preparing", "NameTaken"),
        (403, "exceeded quota: jobs", "Preparing", "QuotaExceeded"),
        (403, "denied by policy", "Preparing", "NotAllowed"),
    ],
)
def test_a_child_that_the_api_server_refuses(make_world: Any, code: int, message: str, phase: str, reason: str) -> None:
    world = make_world()
    drawn = world.plan()
    name = drawn.create[0]["metadata"]["name"]
    world.refusals["Job", name] = Refusal("Job", name, code, message)
    world.step()
    assert (world.status["phase"], world.status["reason"]) == (phase, reason)
    if phase != "Failed":
        assert world.notes[-1].type == "Warning"
        world.refusals.clear()
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
    world.end("train", 5) if world.pods[world.job("train").uid] else None
    world.settle()
    assert (world.condition("Suspended"), world.condition("Ready")) == ("True", "False")
    world.edit(suspend=False)
    world.through("train", "publish")
    assert (world.condition("Ready"), world.condition("Reconciling")) == ("True", None)


def test_the_end_of_a_job_is_not_judged_before_the_ends_of_its_pods_are_known(make_world: Any) -> None:
    world = make_world()
    world.settle()
    world.run("prepare")
    world.settle()
    world.set("prepare", complete=world.now)
    drawn = world.settle()
    assert drawn.look_again is not None
    assert drawn.look_again <= 1
    assert world.book == [("prepare", 1, "Running")]
    world.end(
        "prepare", 0, text='{"contract":1,"stage":"prepare","outcome":"succeeded","exitCode":0,"data":{"rows":3}}'
    )
    world.settle()
    assert world.status["data"] == {"rows": 3}
