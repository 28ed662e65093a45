"""The small machines that the reconciler stands on."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from finetune_operator.domain.observed import PodView, ProgressReading
from finetune_operator.domain.status.write_policy import can_wait
from finetune_operator.runtime.cache import Cache, read_status
from finetune_operator.runtime.connection import Credentials
from finetune_operator.runtime.mergepatch import difference
from finetune_operator.runtime.poller import Poller, Watch, WriteBudget
from finetune_operator.runtime.queue import WorkQueue
from finetune_operator.telemetry.logs import JsonFormatter, key_in_work
from hypothesis import given
from hypothesis import strategies as st

A, B = ("team", "a"), ("team", "b")


# The queue.


async def test_a_key_waits_once_and_one_worker_has_it() -> None:
    queue = WorkQueue()
    for key in (A, B, A, A):
        queue.add(key)
    assert len(queue) == 2
    assert await queue.get() == A
    queue.add(A)
    assert len(queue) == 1, "what happens meanwhile is looked at after the worker, not beside it"
    assert await queue.get() == B
    queue.done(A)
    assert await queue.get() == A


async def test_a_timer_is_never_later_than_what_was_asked_and_goes_with_a_look() -> None:
    queue = WorkQueue()
    queue.add_after(A, 30)
    queue.add_after(A, 0.02)
    queue.add_after(A, 30)
    assert await asyncio.wait_for(queue.get(), 1) == A
    queue.add_after(B, 0.02)
    queue.add(B)
    assert await queue.get() == B
    queue.done(B)
    await asyncio.sleep(0.05)
    assert len(queue) == 0


async def test_errors_wait_longer_each_time_until_one_look_is_good() -> None:
    queue = WorkQueue()
    waits = [queue.add_failed(A) for _ in range(12)]
    assert waits[0] <= 0.1
    assert 300 >= waits[-1] >= 25
    assert queue.add_failed(B, at_least=7) >= 7
    queue.forget(A)
    assert queue.add_failed(A) <= 0.1


async def test_a_closed_queue_lets_its_workers_go() -> None:
    queue = WorkQueue()
    workers = [asyncio.create_task(queue.get()) for _ in range(3)]
    await asyncio.sleep(0)
    queue.add_after(A, 0)
    queue.close()
    queue.add(B)
    assert set(await asyncio.gather(*workers)) <= {None, A}
    assert await queue.get() is None


# The cache.


def ftj(version: int, uid: str = "u", **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "team", "name": "a", "uid": uid, "resourceVersion": str(version), "generation": 1},
        "spec": {
            "model": {"uri": "pvc://m"},
            "method": {"type": "lora"},
            "data": {"train": [{"uri": "pvc://d/t"}]},
            "workspace": {"uri": "pvc://w"},
            "output": {"uri": "pvc://o/x"},
        },
        "status": status,
    }


def child(kind: str, version: int, owner: str = "u", uid: str = "j", **more: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "namespace": "team",
            "name": f"{kind}-{uid}",
            "uid": uid,
            "resourceVersion": str(version),
            "labels": {
                "finetune.dev/job": "a",
                "finetune.dev/job-uid": "u",
                "finetune.dev/run": "r",
                "finetune.dev/stage": "train",
                "finetune.dev/attempt": "1",
            },
            "ownerReferences": [{"uid": owner, "controller": True}],
        },
        **more,
    }


def test_an_object_only_moves_forward() -> None:
    cache = Cache()
    assert cache.observe("FineTuneJob", ftj(5, phase="Training")) == A
    assert cache.observe("FineTuneJob", ftj(4, phase="Preparing")) is None, "an echo from before our own write"
    assert cache.observe("FineTuneJob", ftj(5, phase="Training")) is None
    assert cache.finetunejob(A).status["phase"] == "Training"  # type: ignore[union-attr]
    assert cache.forget("FineTuneJob", *A, "other") is None
    assert cache.forget("FineTuneJob", *A, "u") == A
    assert cache.observe("FineTuneJob", ftj(9)) is None, "a list from before its deletion"
    assert cache.snapshot(A) is None
    assert cache.observe("FineTuneJob", ftj(3, uid="new")) == A, "another object of the same name is another object"


def test_what_changes_nothing_wakes_nobody() -> None:
    cache = Cache()
    cache.observe("FineTuneJob", ftj(1))
    assert cache.observe("Job", child("Job", 2)) == A
    assert cache.observe("Job", child("Job", 3, status={"active": 1, "ready": 1})) is None
    pod = child("Pod", 4, owner="j", uid="p", status={"phase": "Pending"})
    assert cache.observe("Pod", pod) == A
    noise = copy.deepcopy(pod)
    noise["metadata"]["resourceVersion"] = "5"
    noise["status"]["conditions"] = [{"type": "Initialized", "status": "True"}]
    assert cache.observe("Pod", noise) is None
    seen = cache.snapshot(A)
    assert seen is not None
    assert [pod.name for pod in seen.pods["a-r-train-1"]] == ["Pod-p"]
    assert cache.forget("Pod", "team", "Pod-p", "p") == A
    assert cache.forget("Job", "team", "Job-j", "j") == A
    seen = cache.snapshot(A)
    assert seen is not None
    assert (seen.jobs, seen.pods) == ({}, {})


def test_the_last_words_of_a_pod_outlive_it_until_they_were_seen() -> None:
    """The Job controller deletes the pods of a Job that is suspended as soon as they end."""
    cache = Cache()
    cache.observe("FineTuneJob", ftj(1))
    cache.observe("Job", child("Job", 2))
    text = '{"stage": "train", "outcome": "stopped", "exitCode": 5, "step": 7}'
    ended = {"exitCode": 5, "reason": "Error", "message": text}
    for number, words in (
        (3, {"terminated": ended}),
        (4, {"terminated": ended | {"message": ""}}),
        (5, {"running": {}}),
    ):
        state = {"containerStatuses": [{"name": "trainer", "state": words}]}
        cache.observe("Pod", child("Pod", number, owner="j", uid=f"p{number}", status=state))
        cache.forget("Pod", "team", f"Pod-p{number}", f"p{number}")
    seen = cache.snapshot(A)
    assert seen is not None
    assert not seen.pods
    assert [pod.ended.message.step for pod in seen.departed["a-r-train-1"] if pod.ended and pod.ended.message] == [7]
    cache.looked_at(seen)
    seen = cache.snapshot(A)
    assert seen is not None
    assert not seen.departed


def test_pods_are_found_when_their_job_is_gone_or_let_them_go() -> None:
    cache = Cache()
    cache.observe("FineTuneJob", ftj(1))
    cache.observe("Job", child("Job", 2))
    cache.observe("Pod", child("Pod", 3, owner="j", uid="p"))
    cache.forget("Job", "team", "Job-j", "j")
    orphan = child("Pod", 4, uid="p")
    orphan["metadata"]["ownerReferences"] = []
    cache.observe("Pod", orphan)
    seen = cache.snapshot(A)
    assert seen is not None
    assert not seen.jobs
    assert [pod.name for pod in seen.pods["a-r-train-1"]] == ["Pod-p"]


def test_children_of_others_are_not_ours() -> None:
    cache = Cache()
    cache.observe("FineTuneJob", ftj(1))
    cache.observe("Job", child("Job", 2, owner="somebody-else"))
    stranger = child("Pod", 3, uid="p")
    stranger["metadata"]["labels"] = {"finetune.dev/job": "a"}
    assert cache.observe("Pod", stranger) is None
    seen = cache.snapshot(A)
    assert seen is not None
    assert not seen.jobs


def test_a_spec_that_cannot_be_read_is_said_in_sentences() -> None:
    cache = Cache()
    body = ftj(1)
    body["spec"]["training"] = {"learningRat": 1}
    body["spec"]["managedBy"] = "other.example/x"
    cache.observe("FineTuneJob", body)
    seen = cache.snapshot(A)
    assert seen is not None
    assert seen.invalid == "spec.training.learningRat: unknown field; did you mean learningRate?"
    assert seen.job.spec.managed_by == "other.example/x"


def test_a_status_of_another_version_is_read_as_far_as_it_goes() -> None:
    attempt = {"stage": "train", "number": 1, "job": "a", "outcome": "Running", "novelty": 1}
    raw = {"phase": "Training", "run": "abcde", "novelty": {"a": 1}, "gpus": "many", "attempts": [attempt]}
    status, unreadable = read_status(raw)
    assert (status.phase, status.run, status.gpus, unreadable) == ("Training", "abcde", None, {"gpus"})
    assert status.wire() | {"gpus": "many"} == {"observedGeneration": -1, **raw}, "what is written back loses nothing"


# Patches.

JSON = st.recursive(
    st.booleans() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.sampled_from("abc"), JSON, max_size=3)


def merged(target: Any, patch: Any) -> Any:
    """RFC 7386, as it stands there."""
    if not isinstance(patch, dict):
        return patch
    target = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            target.pop(name, None)
        else:
            target[name] = merged(target.get(name), value)
    return target


@given(before=OBJECTS, after=OBJECTS)
def test_a_difference_leads_from_one_to_the_other(before: dict[str, Any], after: dict[str, Any]) -> None:
    patch = difference(before, after)
    assert merged(before, patch) == after
    assert (patch == {}) == (before == after)


@pytest.mark.parametrize(
    ("change", "waits"),
    [
        ({"attempts": [{"job": "j", "outcome": "Running", "started": "2026-01-31T12:00:00Z"}]}, True),
        ({"lastCheckpoint": {"step": 2}}, False),
        ({"attempts": [{"job": "j", "outcome": "Running", "lastStep": 4}]}, False),
        ({"attempts": [{"job": "j", "outcome": "Failed"}]}, False),
        ({"attempts": [{"job": "j", "outcome": "Running"}, {"job": "k", "outcome": "Running"}]}, False),
        ({"attempts": [{"job": "j", "outcome": "Running"}], "phase": "Training"}, False),
        ({"phase": "Training"}, False),
    ],
)
def test_what_can_be_seen_again_goes_with_the_next_write(change: dict[str, Any], waits: bool) -> None:
    assert can_wait({"attempts": [{"job": "j", "outcome": "Running"}]}, change) is waits


def test_the_budget_of_progress_writes() -> None:
    budget = WriteBudget(rate=2)
    assert [budget.take(10.0) for _ in range(3)] == [True, True, False]
    assert budget.take(10.6)
    assert not budget.take(10.6)


def test_a_pod_is_read_often_until_it_moves() -> None:
    loading, resumed = (Watch(15.0, since=100.0) for _ in range(2))
    budget = WriteBudget()
    for percent, now, pause in ((0.0, 102.0, 3.0), (0.0, 105.0, 3.0), (0.2, 108.0, 15.0), (0.2, 123.0, 15.0)):
        loading.answered(percent, now, budget)
        assert loading.pause(now) == pytest.approx(pause)
    for now, pause in ((102.0, 3.0), (159.0, 3.0), (160.0, 15.0)):
        resumed.answered(27.0, now, budget)  # where it stood before: it still loads
        assert resumed.pause(now) == pytest.approx(pause)


def test_silence_is_told_once_after_two_intervals_and_that_it_ended() -> None:
    watch, budget = Watch(15.0, since=100.0), WriteBudget()
    assert [watch.silent(now) for now in (102.0, 105.0, 108.0, 111.0)] == [False] * 4, "it has just begun"
    assert watch.answered(0.0, 114.0, budget)
    assert [watch.silent(now) for now in (117.0, 132.0, 146.9, 147.0, 162.0)] == [False, False, False, True, False]
    assert watch.answered(0.0, 165.0, budget), "the same as before, but it answers again"
    assert not watch.answered(0.0, 168.0, budget)


async def test_what_a_pod_tells_is_told_on_when_it_begins_to_move_and_with_each_percent() -> None:
    percents = iter([0.0, 0.0, 0.3, 0.6, 0.9, 1.2, 1.4, 2.0])
    told: list[float] = []
    end = asyncio.Event()

    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"contract": 1, "stage": "train", "percent": next(percents, 2.0)})

    def tell(_: Any, reading: ProgressReading) -> None:
        assert reading.progress is not None
        told.append(reading.progress.percent)
        if reading.progress.percent >= 2:
            end.set()

    app = web.Application()
    app.router.add_get("/progress", answer)
    async with TestServer(app, host="127.0.0.1") as server:
        poller = Poller(0.05, tell, port=server.port or 0)
        poller.follow(A, PodView("train-0", "u", "j", 0, "Running", 0.0, ip="127.0.0.1"))
        await asyncio.wait_for(end.wait(), 30)
        await poller.close()
    assert told == [0.0, 0.3, 1.2, 2.0]


# Credentials and logs.


def test_a_token_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    token = tmp_path / "token"
    token.write_text("one\n")
    credentials = Credentials(token_file=token)
    assert credentials.authorization() == "Bearer one"
    token.write_text("two")
    now[0] = 59
    assert credentials.authorization() == "Bearer one"
    now[0] = 61
    assert credentials.authorization() == "Bearer two"


def test_a_log_line_is_one_json_object_with_the_job_in_work() -> None:
    record = logging.makeLogRecord({"msg": "created\nx", "levelname": "INFO", "name": "n", "kind": "Job"})
    token = key_in_work.set(A)
    line = JsonFormatter().format(record)
    key_in_work.reset(token)
    assert "\n" not in line
    assert json.loads(line).items() >= {"namespace": "team", "name": "a", "kind": "Job", "level": "info"}.items()
