"""`plan` when something goes wrong: verdicts, budgets, and what is tried again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_api.contract import Progress
from finetune_operator.domain.attempts.reconcile import RUNNING
from finetune_operator.domain.observed import Ended, ProgressReading, Refusal


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
    world = make_world(retry={"oom": 0})
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


@pytest.mark.parametrize(("stage", "nodes"), [("prepare", 1), ("train", 2)])
def test_a_failure_is_never_told_as_a_start_or_a_stop(make_world: Any, stage: str, nodes: int) -> None:
    """From the container's end on, which is seen before the pod's, which is seen before the Job's."""
    world = make_world(compute={"device": "cpu", "nodes": nodes})
    world.share()
    world.through(*{"train": ["prepare"]}.get(stage, []))
    world.settle()
    world.run(stage, nodes)
    world.settle()
    texts = []
    for seen in (
        lambda: world.pod(
            stage, phase="Running", running_since=None, ended=Ended(3, "Error", "", world.now, world.now)
        ),
        lambda: world.end(stage, 3),
        lambda: world.set(stage, failing=world.now) if nodes > 1 else None,
    ):
        seen()
        world.settle()
        assert (world.status["phase"], world.status["reason"]) == (RUNNING[stage][0], "Retrying")
        texts.append(world.status["message"])
    assert set(texts) == {f"Stage {stage} failed" + ("; its other pods are ending" if nodes > 1 else "")}


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
            waits.append(drawn.requeue_after)
            assert world.status["reason"] == "Retrying"
            world.now += drawn.requeue_after
            world.settle()
    assert [round(wait / 10) for wait in waits] == [1, 2], "10 s, doubled, with a fifth of jitter"
    failure = world.status["failure"]
    assert (world.status["phase"], world.state["infraFailures"], failure["code"]) == ("Failed", 3, "Unknown")
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
    pods = world.pods[world.job("train").name]
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
    world.gone("train", 1)


@pytest.mark.parametrize("happens", [disrupted, evicted, deleted, node_lost, vanished])
def test_disruption_is_nobodys_error(make_world: Any, words: Any, happens: Any) -> None:
    world = make_world(compute={"device": "cpu", "nodes": 2}, retry={"infra": 0})
    world.share()
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
    assert "infraFailures" not in world.state
    assert (world.status["phase"], world.status["reason"], world.condition("Ready")) == ("Queued", "Resuming", "True")
    world.now += drawn.requeue_after
    world.settle()
    assert world.book[-1] == ("train", 2, "Running")
    assert world.status["lastCheckpoint"]["step"] == 8
    assert world.events[-2].type == "Warning"
    assert "resumes from step 8" in world.events[-2].text


def test_a_gang_that_the_job_controller_ended_is_not_taken_for_evicted(make_world: Any) -> None:
    world = make_world(compute={"device": "cpu", "nodes": 2})
    world.share()
    world.through("prepare")
    world.run("train", 2)
    world.settle()
    world.end("train", 1, 1, "Segmentation fault")
    # The controller deletes rank 0 in the same second.
    world.end("train", 143, 0, deletion_asked=world.now, deletion_due=world.now + 120)
    world.fail("train")
    world.settle()
    assert world.book[-1] == ("train", 1, "Failed")
    assert world.state["infraFailures"] == 1


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
    job = world.job("prepare").name
    del world.jobs[job]
    world.settle()
    assert world.book == [("prepare", 1, "Running")], "its pod still runs"
    world.pods[job] = {}
    drawn = world.settle()
    assert world.book == [("prepare", 1, "Evicted")]
    world.now += drawn.requeue_after
    world.settle()
    assert world.book == [("prepare", 1, "Evicted"), ("prepare", 2, "Running")]


@pytest.mark.parametrize("queued", [False, True])
def test_a_stop_with_a_checkpoint_goes_on_at_once(make_world: Any, words: Any, queued: bool) -> None:
    """In a new Job, since the Job controller would hold a gang of seven back for ten minutes; in the same one if a queue owns it."""
    world = make_world(compute={"device": "cpu", "nodes": 2})
    world.share()
    world.queued_elsewhere = queued
    world.through("prepare")
    if queued:
        world.set("train", suspended=False)
    world.run("train", 2)
    world.settle()
    stop = words("train", "stopped", 5, step=7, lastCheckpoint={"step": 7})
    for happens, checkpoint in (
        (lambda: world.pod("train", 0, deletion_asked=world.now), ""),
        (lambda: world.end("train", 5, 0, stop), " from its last checkpoint"),
        (lambda: world.gone("train", 0), " from its last checkpoint"),
    ):
        happens()
        world.settle()
        assert world.book[-1] == ("train", 1, "Running"), "the other rank is still stopping"
        assert world.status["message"] == f"Pods of stage train were stopped; it resumes{checkpoint}"
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
        assert world.settle().requeue_after == pytest.approx(5, rel=0.21)
    assert "infraFailures" not in world.state


def test_why_a_gang_was_stopped_is_recorded_when_the_evicted_pod_is_gone_before_its_peer_ends(
    make_world: Any, prepared: Any, words: Any
) -> None:
    world = make_world(compute={"nodes": 2})
    world.share()
    world.prepare(**prepared)
    world.run("train", 2)
    world.settle()
    world.pod("train", 1, disrupted="EvictionByEvictionAPI: Eviction API: evicting", deletion_asked=world.now)
    world.settle()
    world.gone("train", 1)
    world.settle()
    world.end("train", 5, 0, words("train", "stopped", 5, step=7, lastCheckpoint={"step": 7}))
    world.settle()
    attempt = next(a for a in world.status["attempts"] if a.get("reason") == "Preempted")
    assert "EvictionByEvictionAPI" in attempt["message"]
    world.run("train", 2)
    world.settle()
    assert "message" not in world.status["attempts"][-1]


def test_a_training_alone_goes_on_from_the_step_of_its_checkpoint(make_world: Any, words: Any) -> None:
    """A publication that is stopped does not: that step was the training's."""
    world = make_world()
    world.through("prepare")
    world.run("train")
    world.settle()
    world.finish("train", lastCheckpoint={"step": 9})
    world.settle()
    assert world.status["lastCheckpoint"]["step"] == 9
    world.run("publish")
    world.settle()
    world.pod("publish", deletion_asked=world.now)
    world.settle()
    assert world.status["message"] == "Pods of stage publish were stopped; it resumes"
    world.end("publish", 5, text=words("publish", "stopped", 5))
    world.settle()
    assert world.events[-2].text.endswith("was deleted. Stage publish resumes")


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
    assert len(world.book) == 10
    assert world.book[0] == ("prepare", 1, "Succeeded")
    assert world.book[-1] == ("train", 26, "Running")
    assert len(world.jobs) <= 4, "pods of old attempts are cleaned up"


@pytest.mark.parametrize(
    ("code", "message", "reason", "stalled"),
    [
        (422, "spec.template.spec.volumes[0].name: Duplicate value", "Rejected", "True"),
        (400, "admission webhook denied the request", "Rejected", "True"),
        (409, "", "NameTaken", "True"),
        (403, "exceeded quota: jobs", "QuotaExceeded", None),
        (403, "denied by policy", "NotAllowed", "True"),
        (500, 'failed calling webhook "x": connection refused', "APIServerError", "True"),
    ],
)
def test_a_child_that_the_api_server_refuses_blocks_the_job_until_it_is_accepted(
    make_world: Any, code: int, message: str, reason: str, stalled: str | None
) -> None:
    world = make_world()
    name = world.plan().create[0]["metadata"]["name"]
    world.refusals["Job", name] = Refusal("Job", name, code, message, due=False)
    drawn = world.step()
    assert (world.status["phase"], world.status["reason"]) == ("Preparing", reason)
    assert (world.condition("Stalled"), drawn.retry) == (stalled, f"blocked:{reason}")
    assert message in world.status["message"]
    assert world.events[-1].type == "Warning"
    assert drawn.create == (), "its backoff lasts"
    world.refusals["Job", name] = Refusal("Job", name, code, message)
    assert world.plan().create, "it has passed"
    world.refusals.clear()
    world.settle()
    assert world.status["reason"] == "Starting"


def test_a_refused_suspension_is_shown_in_the_phase_that_is_true(make_world: Any) -> None:
    world = make_world()
    world.through("prepare")
    world.run("train")
    world.settle()
    job = world.job("train")
    world.edit(suspend=True)
    world.refusals["Job", job.name] = Refusal("Job", job.name, 403, "denied by policy", "change", due=False)
    drawn = world.step()
    assert (world.status["phase"], world.status["reason"]) == ("Training", "NotAllowed")
    assert world.status["observedGeneration"] == world.body["metadata"]["generation"]
    assert (drawn.patch, drawn.retry) == ((), "blocked:NotAllowed")
    world.refusals.clear()
    assert world.plan().patch


def test_a_refused_deletion_of_a_job_that_still_runs_is_shown(make_world: Any) -> None:
    """A suspended job gives its Job back to the queue."""
    world = make_world()
    world.queued_elsewhere = True
    world.through("prepare")
    world.set("train", suspended=False)
    world.run("train")
    world.settle()
    job = world.job("train")
    world.edit(suspend=True)
    world.refusals["Job", job.name] = Refusal("Job", job.name, 403, "denied by policy", "delete", due=False)
    drawn = world.settle()
    assert (world.status["phase"], world.status["reason"], world.condition("Stalled")) == (
        "Queued",
        "NotAllowed",
        "True",
    )
    assert f"may not delete Job {job.name}: denied by policy" in world.status["message"]
    assert (drawn.delete, drawn.retry) == ((), "blocked:delete")
    world.refusals.clear()
    world.settle()
    assert (world.status["phase"], world.condition("Stalled"), job.name in world.jobs) == ("Suspended", None, False)


def test_the_end_of_a_job_is_not_judged_before_the_ends_of_its_pods_are_known(make_world: Any) -> None:
    world = make_world()
    world.settle()
    world.run("prepare")
    world.settle()
    world.set("prepare", complete=world.now)
    drawn = world.settle()
    assert drawn.requeue_after is not None
    assert drawn.requeue_after <= 1
    assert world.book == [("prepare", 1, "Running")]
    world.end(
        "prepare", 0, text='{"contract":1,"stage":"prepare","outcome":"succeeded","exitCode":0,"data":{"rows":3}}'
    )
    world.settle()
    assert world.status["data"] == {"rows": 3}


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_service_that_is_deleted_while_ranks_start_is_created_again(make_world: Any, nodes: int) -> None:
    """A pod alone needs none."""
    world = make_world(compute={"device": "cpu", "nodes": nodes})
    world.share()
    world.through("prepare")
    world.run("train", nodes - 1)
    drawn = world.settle()
    assert drawn.retry == "starting", "what is believed to exist is forgotten then"
    world.known.clear()
    assert [body["kind"] for body in world.plan().create] == ["Service"] * (nodes - 1)


def test_a_node_on_which_two_attempts_failed_is_avoided(make_world: Any) -> None:
    world = make_world(retry={"infra": 9}, pods={"common": {"affinity": {"podAffinity": {"x": 1}}}})
    for _ in range(3):
        world.settle()
        affinity = world.manifests["Job", world.job("prepare").name]["spec"]["template"]["spec"]["affinity"]
        world.run("prepare")
        world.settle()
        world.end("prepare", 1)
        world.fail("prepare")
        world.settle()
        world.now += 100
    (preferred,) = affinity["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert preferred["preference"]["matchFields"] == [
        {"key": "metadata.name", "operator": "NotIn", "values": ["node-0"]}
    ]
    assert affinity["podAffinity"] == {"x": 1}


def test_pods_that_do_not_start_in_time_use_a_retry(make_world: Any) -> None:
    world = make_world(retry={"infra": 1, "startTimeout": "10m"})
    drawn = world.settle()
    world.pod("prepare", unschedulable="0/1 nodes are available: 1 Insufficient cpu", unschedulable_since=world.now)
    world.now += 590
    drawn = world.settle()
    assert world.book == [("prepare", 1, "Running")]
    world.now += drawn.requeue_after
    world.settle()
    assert world.book[0] == ("prepare", 1, "Failed")
    attempt = world.status["attempts"][0]
    assert (attempt["reason"], "Insufficient cpu" in attempt["message"]) == ("StartTimeout", True)


def test_the_time_of_a_checkpoint_sets_the_grace_of_the_next_pods(make_world: Any, words: Any) -> None:
    world = make_world()
    world.through("prepare")
    for expected in (120, 300):
        pods = world.manifests["Job", world.job("train").name]["spec"]["template"]["spec"]
        assert pods["terminationGracePeriodSeconds"] == expected
        world.run("train")
        world.settle()
        text = words("train", "stopped", 5, step=12, lastCheckpoint={"step": 9}, checkpointSeconds=95.0)
        world.end("train", 5, text=text)
        world.settle()
        world.now += 100
        world.settle()
    assert world.status["attempts"][1]["stepsLost"] == 3


def test_a_result_that_was_lost_with_its_pod_is_reported_by_another_attempt(make_world: Any, prepared: Any) -> None:
    """Not before the API server has confirmed it, since a watch may be behind."""
    world = make_world(budget={"maxCost": 1.0, "gpuHourPrice": 1.0})
    world.settle()
    name = world.job("prepare").name
    world.run("prepare")
    world.settle()
    world.pods[name] = {}
    world.set("prepare", complete=world.now)
    world.now += 6
    drawn = world.plan()
    assert {(read.kind, read.name) for read in drawn.reads} == {("pods", name)}
    world.settle()
    assert world.book == [("prepare", 1, "Stopped"), ("prepare", 2, "Running")]
    assert world.status["attempts"][0]["reason"] == "ResultLost"
    world.run("prepare")
    world.settle()
    world.finish("prepare", **prepared)
    world.settle()
    assert world.status["plan"]["digest"]


@pytest.mark.parametrize("code", [0, 1])
def test_a_stage_whose_job_is_deleted_after_its_trainer_ended_is_done_if_that_succeeded(
    make_world: Any, words: Any, code: int
) -> None:
    world = make_world()
    world.through("prepare", "train")
    world.run("publish")
    world.settle()
    world.end("publish", code, text=words("publish", "succeeded" if code == 0 else "failed", code))
    del world.jobs[world.job("publish").name]
    world.settle()
    assert world.book[-1] == ("publish", 1, "Evicted" if code else "Succeeded")
    assert (world.condition("Complete") == "True") is (code == 0)


@pytest.mark.parametrize("lost", [False, True])
def test_an_evaluation_that_was_lost_with_its_pod_is_reported_by_publish(make_world: Any, lost: bool) -> None:
    """The training is not repeated for it, and its own word counts first."""
    world = make_world()
    world.through("prepare")
    world.run("train")
    world.settle()
    world.finish("train", evaluation={"rows": 20})
    if lost:
        world.gone("train", 0)
        world.now += 6
    world.settle()
    assert world.condition("Evaluated") == (None if lost else "True")
    world.run("publish")
    world.settle()
    world.finish("publish", evaluation={"rows": 30})
    world.settle()
    assert world.book == [("prepare", 1, "Succeeded"), ("train", 1, "Succeeded"), ("publish", 1, "Succeeded")]
    assert (world.status["evaluation"]["rows"], world.condition("Evaluated")) == (30 if lost else 20, "True")


@pytest.mark.parametrize(
    ("seen", "report", "expected"),
    [
        (40, {"step": 60, "resumedFromStep": 57}, (57, 57, 0)),  # saved while the operator was down
        (40, {"step": 33, "resumedFromStep": 30}, (30, 40, 10)),
        (40, {"step": 2}, (None, 40, 40)),
        (0, {"step": 60, "resumedFromStep": 57}, (57, 57, 0)),
    ],
)
def test_steps_lost_in_an_end_that_was_not_observed_are_known_when_the_next_attempt_resumes(
    make_world: Any, seen: int, report: dict[str, Any], expected: tuple[int | None, int, int]
) -> None:
    world = make_world()
    world.through("prepare")
    world.run("train")
    pod = world.pod("train")
    if seen:
        told = Progress.model_validate({"stage": "train", "step": seen, "totalSteps": 100})
        world.progress = ProgressReading(pod.uid, told)
    world.settle()
    name = world.job("train").name
    del world.jobs[name], world.pods[name]
    world.settle()
    assert world.status["attempts"][1]["outcome"] == "Evicted"
    assert "stepsLost" not in world.status["attempts"][1]
    world.now += 100
    world.settle()
    world.run("train")
    told = Progress.model_validate({"stage": "train", "totalSteps": 100, **report})
    world.progress = ProgressReading(world.pod("train").uid, told)
    world.settle()
    checkpoint = (world.status.get("lastCheckpoint") or {}).get("step")
    attempt = world.status["attempts"][1]
    assert (checkpoint, attempt["lastStep"], attempt["stepsLost"]) == expected
