"""The small machines that the reconciler stands on."""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
import logging
import pickle
import random
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus
from finetune_operator.domain.observed import ClaimView, Ended, JobView, PodView, ProgressReading, Read
from finetune_operator.domain.plan_builder import Event
from finetune_operator.domain.reasons import Reason
from finetune_operator.domain.status.write_policy import can_wait
from finetune_operator.handlers.http import listen
from finetune_operator.runtime.cache import Cache, read_status
from finetune_operator.runtime.client import Client
from finetune_operator.runtime.connection import Connection, Credentials
from finetune_operator.runtime.decoding import UNREAD, decode_list
from finetune_operator.runtime.errors import ApiError, Unreachable
from finetune_operator.runtime.informer import Informer, Informers, Receiver
from finetune_operator.runtime.job_cache import JobCache
from finetune_operator.runtime.job_metrics import measure
from finetune_operator.runtime.mergepatch import difference
from finetune_operator.runtime.poller import Poller, Watch
from finetune_operator.runtime.queue import Priority, WorkQueue
from finetune_operator.runtime.recorder import Recorder
from finetune_operator.runtime.resources import JOB, POD, Resource
from finetune_operator.runtime.supervisor import Supervisor
from finetune_operator.runtime.write_budget import WriteBudget, only_texts
from finetune_operator.telemetry import metrics
from finetune_operator.telemetry.logs import JsonFormatter, key_in_work
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from tests.unit.operator.conftest import until

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


async def test_errors_wait_longer_each_time_until_one_reconcile_is_good() -> None:
    queue = WorkQueue()
    waits = [queue.add_failed(A) for _ in range(14)]
    assert 0.075 <= waits[0] <= 0.125
    assert 225 <= waits[-1] <= 375
    assert queue.add_failed(B, at_least=7) >= 7
    queue.forget(A)
    assert queue.add_failed(A) <= 0.125


async def test_namespaces_take_turns_and_none_has_more_than_its_share_of_the_workers() -> None:
    queue = WorkQueue(share=2)
    for number in range(5):
        queue.add(("busy", str(number)))
    queue.add(("calm", "1"))
    taken = [await queue.get() for _ in range(3)]
    assert taken == [("busy", "0"), ("calm", "1"), ("busy", "1")]
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    assert not waiting.done(), "its webhook may hang: the other workers are for other namespaces"
    queue.add(("calm", "2"))
    assert await waiting == ("calm", "2")
    queue.done(("busy", "0"))
    assert await queue.get() == ("busy", "2")


async def test_jobs_without_children_go_first_and_those_that_only_were_listed_last() -> None:
    queue = WorkQueue()
    for name, priority in (("l", Priority.LATER), ("n", Priority.NORMAL), ("new", Priority.NEW), ("p", Priority.LATER)):
        queue.add(("team", name), priority)
    queue.add(("team", "p"), Priority.NEW)
    assert [(await queue.get() or A)[1] for _ in range(4)] == ["new", "p", "n", "l"]
    assert len(queue) == 0


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("QuotaExceeded", [5, 10, 20, 40, 80, 160, 300, 300]),
        ("blocked:NameTaken", [5, 10, 20, 40, 40, 40, 40, 40]),
    ],
)
async def test_a_job_that_cannot_proceed_is_retried_less_and_less(
    monkeypatch: pytest.MonkeyPatch, reason: str, expected: list[float]
) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: (low + high) / 2)
    queue, now = WorkQueue(), [1000.0]
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now[0], raising=False)
    waits = []
    for _ in range(8):
        waits.append(queue.retry(A, reason))
        now[0] += waits[-1] / 2
        assert queue.retry(A, reason) == waits[-1] / 2, "an event in between makes it no later"
        now[0] += waits[-1] / 2
    assert waits == expected
    assert queue.retry(A, "NotAllowed") == 5, "another reason is another story"
    queue.settled(A)
    assert queue.retry(A, "NotAllowed") == 5


async def test_a_thousand_jobs_that_were_refused_together_do_not_ask_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """After ten minutes, in any half minute of the next twenty."""
    monkeypatch.setattr("random.uniform", random.Random(18).uniform)
    queue, now = WorkQueue(), [0.0]
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now[0], raising=False)
    asked: Counter[int] = Counter()
    for number in range(1000):
        now[0] = 0.0
        while now[0] < 1800:
            now[0] += queue.retry(("team", str(number)), "blocked:QuotaExceeded")
            asked[int(now[0] // 30)] += 1
    assert max(asked[half_minute] for half_minute in range(20, 60)) <= 5 * 30


async def test_freed_quota_wakes_the_two_that_waited_longest_in_its_namespace() -> None:
    queue = WorkQueue()
    keys = [("team", str(number)) for number in range(5)]
    for key in [*keys, ("other", "0")]:
        queue.retry(key, "blocked:QuotaExceeded")
    queue.freed("team")
    woken = [await queue.get(), await queue.get()]
    assert woken == keys[:2]
    assert len(queue) == 0
    for key in keys[:2]:  # one proceeds, the other does not fit
        queue.settled(key) if key == keys[0] else queue.retry(key, "blocked:QuotaExceeded")
        queue.done(key)
    queue.freed("team")
    assert [await queue.get(), await queue.get()] == keys[2:4], "each has its turn"


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


def test_a_job_whose_labels_were_removed_comes_back_with_them() -> None:
    """A watch with a selector shows the removal as a deletion."""
    cache = Cache()
    cache.observe("FineTuneJob", ftj(1))
    cache.observe("Job", child("Job", 2))
    assert cache.forget("Job", "team", "Job-j", "j", 5) == A
    assert cache.observe("Job", child("Job", 4)) is None, "from before"
    assert cache.version("Job", "team", "Job-j", "j") == 5
    assert cache.observe("Job", child("Job", 6)) == A
    assert cache.version("Job", "team", "Job-j", "j") == 6
    assert "Job-j" in cache.snapshot(A).jobs  # type: ignore[union-attr]


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


def test_the_end_of_a_pod_outlives_it_until_that_of_its_attempt_is_recorded() -> None:
    """The Job controller deletes the pods of a Job that fails or is suspended as soon as they end."""
    cache = Cache()
    cache.observe("FineTuneJob", ftj(1))
    cache.observe("Job", child("Job", 2))
    text = '{"stage": "train", "outcome": "stopped", "exitCode": 5, "step": 7}'
    ended = {"exitCode": 5, "reason": "Error", "message": text}
    for number, words in (
        (3, {"terminated": ended}),
        (4, {"terminated": {"exitCode": 137, "reason": "Error"}}),
        (5, {"running": {}}),
    ):
        state = {"containerStatuses": [{"name": "trainer", "state": words}]}
        cache.observe("Pod", child("Pod", number, owner="j", uid=f"p{number}", status=state))
        cache.forget("Pod", "team", f"Pod-p{number}", f"p{number}")

    def look(*running: str) -> list[int]:
        seen = cache.snapshot(A)
        assert seen is not None
        assert not seen.pods
        cache.looked_at(seen, running)
        return [pod.ended.exit_code for pod in seen.departed.get("a-r-train-1", ()) if pod.ended]

    assert look("a-r-train-1") == [5, 137]
    assert look() == [5, 137]  # others of the gang may still have been ending
    assert look() == []


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


def test_objects_without_an_owner_of_ours_are_remembered_by_their_version() -> None:
    """Resync would take them for missed at every comparison."""
    cache = Cache()
    cache.observe("FineTuneJob", ftj(1))
    orphan = child("Job", 7, uid="o")
    assert cache.observe("Job", orphan) == A
    orphan["metadata"] |= {"ownerReferences": [], "resourceVersion": "8"}
    assert cache.observe("Job", orphan) == A, "it has left the job"
    assert cache.version("Job", "team", "Job-o", "o") == 8
    assert cache.snapshot(A).jobs == {}  # type: ignore[union-attr]
    assert cache.forget("Job", "team", "Job-o", "o") is None
    assert list(cache.holdings("Job", None)) == []


def test_a_finished_job_is_kept_small_and_whole() -> None:
    cache = Cache()
    body = ftj(1, phase="Completed", gpus=4)
    body["metadata"] |= {
        "managedFields": [{"manager": "x" * 50_000}],
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "y" * 50_000, "team": "a"},
    }
    cache.observe("FineTuneJob", body)
    ended = [{"name": "trainer", "state": {"terminated": {"exitCode": 0, "message": "z"}}}]
    cache.observe("Pod", child("Pod", 2, uid="p", status={"phase": "Succeeded", "containerStatuses": ended}))
    done = [{"type": "Complete", "status": "True", "lastTransitionTime": "2026-01-31T12:00:00Z"}]
    cache.observe("Job", child("Job", 3, status={"conditions": done}))
    assert len(pickle.dumps(cache.finetunejob(A))) < 1_000
    ended_views = [child._view for children in cache._children.values() for child in children.values()]
    assert [type(view) for view in ended_views] == [bytes, bytes]
    seen = cache.snapshot(A)
    assert seen is not None
    assert seen.job.metadata.annotations == {"team": "a"}
    assert seen.job.spec.workspace.uri == "pvc://w"
    assert seen.job.status.phase == "Completed"
    assert seen.jobs["Job-j"].complete == 1769860800.0
    assert seen.pods["a-r-train-1"][0].ended == Ended(0, "", "z", None, None)


def test_phases_and_gpus_are_counted_as_they_change() -> None:
    cache = Cache()
    cache.observe("FineTuneJob", ftj(1, phase="Training", gpus=8))
    assert (cache.phases["Training"], cache.gpus) == (1, 8)
    cache.observe("FineTuneJob", ftj(2, phase="Publishing", gpus=8))
    assert (cache.phases["Training"], cache.phases["Publishing"], cache.gpus) == (0, 1, 0)
    cache.observe("FineTuneJob", ftj(3, uid="new", phase="Training", gpus=2))
    assert (cache.phases["Training"], cache.phases["Publishing"], cache.gpus) == (1, 0, 2)
    cache.forget("FineTuneJob", *A, "new")
    assert (sum(cache.phases.values()), cache.gpus) == (0, 0)


def test_a_service_is_checked_again_at_each_retry() -> None:
    """It may have been deleted while ranks start."""
    now = [100.0]
    facts = JobCache(clock=lambda: now[0])
    facts.exists("Service", "train-1")
    facts.retry_in(5)
    facts.drop_stale()
    assert facts.known
    now[0] += 6
    facts.drop_stale()
    assert not facts.known


def test_answers_to_reads_grow_old_by_a_clock_that_nobody_sets() -> None:
    now = [100.0]
    facts = JobCache(clock=lambda: now[0])
    facts.claims["scratch"] = ClaimView("scratch", True)
    facts.read(Read("claim", "scratch"))
    assert not facts.has_read(Read("warnings", "scratch")), "each kind of answer is one of its own"
    now[0] += 3
    facts.drop_stale()
    assert not facts.empty
    now[0] += 3
    facts.drop_stale()
    assert facts.empty


# The client.


@pytest.fixture
async def answers() -> AsyncIterator[tuple[Client, dict[str, Any]]]:
    """A client, and what the API server answers to each path: (code, headers, body)."""
    script: dict[str, Any] = {}

    async def answer(request: web.Request) -> web.Response:
        path = request.path if request.method != "DELETE" else f"DELETE {request.path}"
        code, headers, body = script.get(path, (200, {}, {"kind": "x"}))
        return web.Response(status=code, headers=headers, text=body if isinstance(body, str) else json.dumps(body))

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app, host="127.0.0.1") as server:
        client = Client(Connection(str(server.make_url("")).rstrip("/"), None, Credentials()))
        yield client, script
        await client.close()


async def test_a_conflict_of_a_deletion_does_not_mean_that_the_object_is_gone(
    answers: tuple[Client, dict[str, Any]],
) -> None:
    client, script = answers
    path = "/apis/batch/v1/namespaces/n/jobs/x"
    script[f"DELETE {path}"] = (409, {}, {"reason": "Conflict"})
    script[path] = (200, {}, {"metadata": {"uid": "same"}})
    with pytest.raises(ApiError):
        await client.delete(JOB, "n", "x", "same")
    assert await client.delete(JOB, "n", "x", "another") is None


@pytest.mark.parametrize(
    ("code", "method", "delays_others"),
    [(503, "POST", False), (429, "POST", False), (503, "GET", False), (429, "GET", True)],
)
async def test_a_namespace_that_is_busy_delays_only_itself(
    answers: tuple[Client, dict[str, Any]], code: int, method: str, delays_others: bool
) -> None:
    """A tenant's webhook answers 503 or 429 to what it likes; 429 to a read comes from the API server itself."""
    client, script = answers
    script["/apis/batch/v1/namespaces/busy/jobs"] = script["/apis/batch/v1/namespaces/busy/jobs/x"] = (
        code,
        {"Retry-After": "1"},
        {},
    )
    body = {"metadata": {"namespace": "busy", "name": "x"}}
    with pytest.raises(ApiError):
        await (client.create(JOB, body) if method == "POST" else client.get(JOB, "busy", "x"))
    seconds = {}
    for namespace in ("calm", "busy"):
        began = time.monotonic()
        await client.get(JOB, namespace, "y")
        seconds[namespace] = time.monotonic() - began
    assert (seconds["calm"] > 0.7) is delays_others
    assert max(seconds.values()) > 0.7


@pytest.mark.parametrize(
    ("body", "items"),
    [
        ({"items": None, "metadata": {}}, []),
        ({"items": [{"a": 1}]}, [{"a": 1}]),
        ({"items": "x"}, None),
        ("<html>", None),
    ],
)
async def test_answers_of_another_form_are_errors(
    answers: tuple[Client, dict[str, Any]], body: Any, items: list[Any] | None
) -> None:
    client, script = answers
    script["/apis/batch/v1/namespaces/team/jobs"] = (200, {}, body)
    try:
        found = [item async for page in client.pages(JOB, "team") for item in page]
    except ApiError:
        assert items is None
    else:
        assert found == items


# Watches.


class Events:
    """Watches that a test drives. `fail` makes the next ones raise."""

    def __init__(self) -> None:
        self.open: dict[tuple[str, str | None], Receiver] = {}
        self.fail: dict[str | None, Exception] = {}

    async def watch(self, resource: Resource, namespace: str | None, receiver: Receiver) -> None:
        if namespace in self.fail:
            raise self.fail[namespace]
        self.open[resource.kind, namespace] = receiver
        await asyncio.Event().wait()


async def test_ready_is_every_namespace_that_can_be_listed(
    answers: tuple[Client, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_operator.runtime.informer._FIRST_RETRY_S", 0.01)
    events, woken = Events(), []
    events.fail = {"gone": ApiError(403, "Forbidden", "no"), "slow": Unreachable("no answer")}
    informers = Informers(
        ("team", "gone", "slow"), events.watch, answers[0], Cache(), lambda key, listed: woken.append((key, listed))
    )
    tasks = [asyncio.create_task(run()) for name, run in informers.tasks(300) if name == "watch"]
    kinds = ("FineTuneJob", "Job", "Pod")
    await until(lambda: all((kind, "team") in events.open for kind in kinds))
    for kind in kinds:
        receiver = events.open[kind, "team"]
        if kind == "FineTuneJob":
            receiver.event(None, {"metadata": {"name": "no version, no namespace"}})  # breaks nothing
            receiver.event(None, ftj(1))
        assert woken == [], "a child that was not listed yet would be taken for a missing one"
        receiver.listed()
    assert woken == [(A, True)]
    assert not informers.ready, "the namespace that did not answer may still come"
    del events.fail["slow"]
    await until(lambda: all((kind, "slow") in events.open for kind in kinds))
    for kind in kinds:
        events.open[kind, "slow"].listed()
    assert informers.ready, "the one that we may not list does not count"
    events.open["FineTuneJob", "team"].event("MODIFIED", ftj(2))
    assert woken[1:] == [(A, False)]
    for task in tasks:
        task.cancel()


@pytest.fixture
def informer(
    answers: tuple[Client, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> tuple[Informer, Cache, dict[str, Any]]:
    """Of the Jobs of one namespace, its cache, and what the API server answers."""
    monkeypatch.setattr("finetune_operator.runtime.informer._SETTLE_S", 0)
    cache = Cache()
    cache.observe("FineTuneJob", ftj(1))
    informers = Informers(("team",), Events().watch, answers[0], cache, lambda key, listed: None)
    (found,) = [informer for informer in informers.scopes[0].informers if informer.resource is JOB]
    return found, cache, answers[1]


async def test_a_missed_object_that_cannot_be_read_does_not_keep_others_from_being_repaired(
    informer: tuple[Informer, Cache, dict[str, Any]],
) -> None:
    compared, cache, script = informer
    path = "/apis/batch/v1/namespaces/team/jobs"
    missed = [child("Job", number, uid=f"j{number}") for number in (2, 3, 4)]
    script[path] = (200, {}, {"items": missed})
    for body, code in zip(missed, (403, 500, 200), strict=True):
        script[f"{path}/{body['metadata']['name']}"] = (code, {}, body)
    cache.observe("Job", child("Job", 5, uid="deleted"))
    await compared.compare()
    seen = cache.snapshot(A)
    assert seen is not None
    assert set(seen.jobs) == {"Job-j4"}


@pytest.mark.parametrize("delivers", [False, True])
async def test_only_a_watch_without_any_event_is_restarted(
    informer: tuple[Informer, Cache, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, delivers: bool
) -> None:
    """One that is slow has not delivered what the list shows, but it will."""
    compared, _, script = informer
    restarts: list[int] = []
    monkeypatch.setattr(compared, "restart", lambda: restarts.append(1))
    for number in (2, 3):
        body = child("Job", number, uid=f"j{number}")
        path = "/apis/batch/v1/namespaces/team/jobs"
        script[path], script[f"{path}/Job-j{number}"] = (200, {}, {"items": [body]}), (200, {}, body)
        if delivers:
            compared.event("ADDED", child("Job", number, uid=f"other{number}"))
        await compared.compare()
    assert bool(restarts) is not delivers


def test_children_are_selected_by_a_label_that_only_we_set() -> None:
    """Tools and policies rewrite app.kubernetes.io/managed-by, on a running Job too."""
    for resource in (JOB, POD):
        assert resource.selector.startswith("finetune.dev/")


def test_a_list_is_decoded_without_what_nobody_reads() -> None:
    pod = child("Pod", 3, uid="p", status={"phase": "Running", "podIP": "10.0.0.1"})
    pod["metadata"]["managedFields"] = [{"manager": "kubelet", "fieldsV1": {"f:status": {}}}]
    pod["spec"] = {
        "nodeName": "n1",
        "containers": [{"name": "trainer", "image": "i", "env": [{"name": "A", "value": "b"}]}],
        "volumes": [
            {"name": "claim-0", "persistentVolumeClaim": {"claimName": "scratch"}},
            {"name": "tmp", "emptyDir": {}},
        ],
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
    }
    job = child("Job", 2, spec={"completions": 2, "suspend": True, "template": {"spec": pod["spec"]}})
    found = decode_list(json.dumps({"kind": "List", "metadata": {"continue": "x"}, "items": [pod, job]}).encode())
    assert found["metadata"] == {"continue": "x"}
    assert "kubelet" not in json.dumps(found)
    assert found["items"][0]["spec"]["containers"] == [{"name": "trainer", "image": "i"}]
    assert found["items"][1]["spec"] == {"completions": 2, "suspend": True, "template": {}}
    assert (PodView.of(found["items"][0]), JobView.of(found["items"][1])) == (PodView.of(pod), JobView.of(job))
    assert decode_list(b'{"items": null}') == {"items": None}
    assert UNREAD.keys().isdisjoint(field.alias or name for name, field in FineTuneJobSpec.model_fields.items())


async def test_a_background_task_that_ends_is_started_again(caplog: pytest.LogCaptureFixture) -> None:
    supervisor, runs = Supervisor(first=0.01), 0

    async def fails() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise TypeError("'NoneType' object is not iterable")
        if runs == 3:
            await asyncio.Event().wait()

    before = metrics.task_restarts.labels("resync")._value.get()
    supervisor.start("resync", fails)
    await until(lambda: runs == 3)
    assert metrics.task_restarts.labels("resync")._value.get() == before + 2
    assert "NoneType" in caplog.text
    await supervisor.stop()


async def test_events_are_remembered_for_ten_minutes_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    recorder = Recorder(None)  # type: ignore[arg-type]
    note = Event("Normal", Reason.STARTING, "Start", "text")
    for number in range(3000):
        recorder.say({"uid": str(number)}, note, 1e9 - number)  # the wall clock goes back
        now[0] += 1
    assert recorder._queue.qsize() == 3000
    assert len(recorder._said) <= 601
    recorder.say({"uid": "2999"}, note, 0.0)
    assert recorder._queue.qsize() == 3000, "the same again"


def test_events_of_many_jobs_take_linear_time() -> None:
    """CPU time of four times the events: 4 where it is linear, 16 where each looks at all the others."""
    note = Event("Normal", Reason.STARTING, "Start", "text")

    def seconds(events: int) -> float:
        took = []
        for _ in range(3):
            recorder = Recorder(None)  # type: ignore[arg-type]
            began = time.process_time()
            for number in range(events):
                recorder.say({"uid": str(number)}, note, float(number))
            took.append(time.process_time() - began)
        return min(took)

    assert seconds(8000) < 9 * seconds(2000)


def test_the_default_address_serves_both_families() -> None:
    with listen("", 0) as server:
        port = server.getsockname()[1]
        hosts = ("127.0.0.1", "::1") if server.family == socket.AF_INET6 else ("127.0.0.1",)
        for host in hosts:
            socket.create_connection((host, port), timeout=5).close()


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
    ("change", "always", "at_start", "at_end"),
    [
        ({"attempts": [{"job": "j", "outcome": "Running", "started": "2026-01-31T12:00:00Z"}]}, True, True, True),
        ({"lastCheckpoint": {"step": 2}}, False, False, True),
        ({"attempts": [{"job": "j", "outcome": "Running", "lastStep": 4}]}, False, False, True),
        ({"attempts": [{"job": "j", "outcome": "Failed"}]}, False, False, False),
        ({"attempts": [{"job": "j", "outcome": "Running"}, {"job": "k", "outcome": "Running"}]}, False, False, False),
        ({"attempts": [{"job": "j", "outcome": "Running"}], "phase": "Training"}, False, True, True),
        ({"phase": "Training"}, False, True, True),
    ],
)
def test_what_can_be_seen_again_goes_with_the_next_write(
    change: dict[str, Any], always: bool, at_start: bool, at_end: bool
) -> None:
    before = {"attempts": [{"job": "j", "outcome": "Running"}]}
    assert can_wait(before, change, just_started=False, just_ended=False) is always
    assert can_wait(before, change, just_started=True, just_ended=False) is at_start
    assert can_wait(before, change, just_started=False, just_ended=True) is at_end


def test_the_budget_of_status_writes() -> None:
    budget = WriteBudget(rate=4)
    assert [budget.delay(10.0) > 0 for _ in range(3)] == [False, False, True], "texts leave half to progress"
    assert [budget.take(10.0) for _ in range(3)] == [True, True, False]
    assert budget.take(10.3)
    assert not budget.take(10.3)
    assert budget.delay(10.5) > 0


@pytest.mark.parametrize(
    ("before", "change", "waits"),
    [
        ({"phase": "Queued"}, {"message": "0/5 nodes are available"}, True),
        ({}, {"message": "text"}, False),
        ({"phase": "Queued"}, {"message": "text", "phase": "Training"}, False),
        ({"phase": "Queued"}, {"reason": "QuotaExceeded"}, False),
        ({"phase": "Training"}, {"progress": {"percent": 5}, "message": "text"}, False),
        ({"phase": "Training"}, {"attempts": []}, False),
        (
            {"phase": "Queued", "conditions": [{"type": "Ready", "status": "False", "reason": "R", "message": "a"}]},
            {"conditions": [{"type": "Ready", "status": "False", "reason": "R", "message": "b"}]},
            True,
        ),
        (
            {"phase": "Queued", "conditions": [{"type": "Ready", "status": "False", "reason": "R"}]},
            {"conditions": [{"type": "Ready", "status": "True", "reason": "R"}]},
            False,
        ),
    ],
)
def test_only_new_wording_waits_for_the_budget(before: dict[str, Any], change: dict[str, Any], waits: bool) -> None:
    assert only_texts(before, change) is waits


def test_attempts_are_counted_once_and_by_known_words() -> None:
    def value(metric: Any, **labels: str) -> float:
        return float(REGISTRY.get_sample_value(metric, labels) or 0.0)

    def figures() -> list[float]:
        return [
            value("finetune_gpu_seconds_total", outcome="Evicted"),
            value("finetune_steps_lost_total"),
            value("finetune_retries_total", cause="Other"),
            value("finetune_retries_total", cause="Evicted"),
            value("finetune_queue_wait_seconds_sum"),
            value("finetune_completed_total", result="failed", reason="Other"),
        ]

    def at(minute: int) -> str:
        return f"2026-01-31T12:{minute:02}:00Z"

    prepare = {"stage": "prepare", "number": 1, "job": "p", "outcome": "Succeeded", "started": at(0), "finished": at(1)}
    train = {"stage": "train", "number": 1, "job": "t1", "outcome": "Running"}
    states: list[dict[str, Any]] = [
        {"phase": "Queued", "attempts": [prepare, train]},
        {"phase": "Training", "attempts": [prepare, train | {"started": at(11)}]},
    ]
    ended = train | {"started": at(11), "finished": at(21), "outcome": "Evicted", "stepsLost": 3}
    for reason in ("Evicted", "x" * 307):
        states.append({"phase": "Queued", "attempts": [prepare, ended | {"reason": reason}]})
    states.append({"phase": "Failed", "reason": "y" * 307, "attempts": [prepare, ended]})
    before = figures()
    for old, new in itertools.pairwise(states):
        measure(old, FineTuneJobStatus.model_validate(new | {"gpus": 8}), 0.0)
    measure(states[1], FineTuneJobStatus.model_validate(states[3]), 0.0)  # the reason is a pod's
    assert [after - then for after, then in zip(figures(), before, strict=True)] == [4800.0, 6.0, 1.0, 1.0, 600.0, 1.0]


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


async def test_the_queue_knows_whether_jobs_wait_for_their_first_children() -> None:
    queue = WorkQueue()
    queue.add(A, Priority.NORMAL)
    assert not queue.new_jobs_wait()
    queue.add(A, Priority.NEW)
    queue.add(("team", "b"), Priority.NEW)
    assert await queue.get() == A
    assert queue.new_jobs_wait()
    assert await queue.get() == ("team", "b")
    assert not queue.new_jobs_wait()
