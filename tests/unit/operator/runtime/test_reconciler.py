"""One reconcile against an API server in memory: whatever it answers, the status shows it and nothing is lost."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator
from typing import Any

import pytest
from finetune_api.effective import PlatformDefaults
from finetune_operator.domain.plan_builder import Config
from finetune_operator.domain.times import stamp
from finetune_operator.runtime.cache import Cache, version_of
from finetune_operator.runtime.errors import ApiError, Conflict, Deferred
from finetune_operator.runtime.poller import Poller
from finetune_operator.runtime.reconciler import Reconciler, Requeue
from finetune_operator.runtime.recorder import Recorder
from finetune_operator.runtime.resources import Resource

from tests.unit.operator.conftest import START, manifest

KEY = ("team", "bot")
Object = dict[str, Any]


class ApiServer:
    """Keeps objects by (kind, name), and answers as a Client does. `refuse`: error codes by (verb, kind)."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Object] = {}
        self.refuse: dict[tuple[str, str], int] = {}
        self.events: list[Object] = []
        self._version = 0

    def store(self, kind: str, body: Object) -> Object:
        self._version += 1
        metadata = {"uid": f"u-{self._version}", "creationTimestamp": stamp(START)} | body["metadata"]
        body = body | {"metadata": metadata | {"resourceVersion": str(self._version)}}
        self.objects[kind, metadata["name"]] = body
        return copy.deepcopy(body)

    def _answer(self, verb: str, kind: str) -> None:
        if (code := self.refuse.get((verb, kind))) is not None:
            raise ApiError(code, "Refused", f"{verb} {kind} refused by a policy")

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object | None:
        return copy.deepcopy(self.objects.get((resource.kind, name)))

    async def pages(self, *_: Any, **__: Any) -> AsyncIterator[list[Object]]:
        yield []

    async def create(self, resource: Resource, body: Object) -> Object:
        self._answer("create", resource.kind)
        if resource.kind == "Event":
            self.events.append(body)
            return body
        if (resource.kind, body["metadata"]["name"]) in self.objects:
            raise ApiError(409, "AlreadyExists", "it exists")
        return self.store(resource.kind, body)

    async def merge(
        self, resource: Resource, namespace: str, name: str, change: Object, subresource: str = ""
    ) -> Object:
        self._answer(subresource or "change", resource.kind)
        body = self.objects[resource.kind, name]
        for field in ("uid", "resourceVersion"):
            if change["metadata"].get(field, body["metadata"][field]) != body["metadata"][field]:
                raise ApiError(409, "Conflict", "the object has been modified")
        return self.store(resource.kind, _merged(body, change))

    async def delete(self, resource: Resource, namespace: str, name: str, uid: str | None = None) -> Object | None:
        self._answer("delete", resource.kind)
        return self.objects.pop((resource.kind, name), None)


def _merged(target: Object, patch: Object) -> Object:
    result = dict(target)
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        elif isinstance(value, dict):
            result[name] = _merged(result.get(name) or {}, value)
        else:
            result[name] = value
    return result


class Operator:
    """A reconciler with its cache, and the API server that both know."""

    def __init__(self, image: str | None = "trainer:1", **spec: Any) -> None:
        self.api, self.cache, self.now = ApiServer(), Cache(), START
        client: Any = self.api
        self._recorder = Recorder(client)
        poller = Poller(15.0, lambda key, reading: None)
        self.budget = poller.budget
        config = Config(PlatformDefaults.model_validate({"pods": {"image": image}}))
        self._reconciler = Reconciler(client, self.cache, self._recorder, poller, config, lambda: self.now)
        self.cache.observe("FineTuneJob", self.api.store("FineTuneJob", manifest(**spec)))

    @property
    def status(self) -> Object:
        found: Object = self.api.objects["FineTuneJob", "bot"].get("status", {})
        return found

    async def reconcile(self) -> Requeue:
        return await self._reconciler.reconcile(KEY)

    async def events(self) -> list[Object]:
        """That the job got, the oldest first."""
        task = asyncio.create_task(self._recorder.run())
        await self._recorder.flush(5)
        task.cancel()
        return self.api.events

    def trainings(self) -> list[str]:
        """Names of the Jobs of trainings that exist."""
        return [name for kind, name in self.api.objects if kind == "Job" and "-train-" in name]

    def job(self, stage: str, **change: Any) -> Object:
        """The stage's Job, which the watch shows after this change."""
        name = f"bot-{self.status['run']}-{stage}-1"
        body = self.api.store("Job", _merged(self.api.objects["Job", name], change))
        self.cache.observe("Job", body)
        return body

    def pod(self, stage: str, **status: Any) -> None:
        job = self.job(stage)["metadata"]
        owner = {"uid": job["uid"], "controller": True}
        metadata = {
            "name": f"{job['name']}-0",
            "namespace": "team",
            "labels": job["labels"],
            "ownerReferences": [owner],
        }
        self.cache.observe(
            "Pod", self.api.store("Pod", {"metadata": metadata, "spec": {"nodeName": "n"}, "status": status})
        )

    def end(self, stage: str) -> None:
        """Its pod succeeds, and its Job."""
        words = f'{{"stage":"{stage}","outcome":"succeeded","exitCode":0}}'
        ended = {"terminated": {"exitCode": 0, "message": words, "startedAt": stamp(self.now)}}
        self.pod(stage, phase="Succeeded", containerStatuses=[{"name": "trainer", "state": ended}])
        complete = {"type": "Complete", "status": "True", "lastTransitionTime": stamp(self.now)}
        self.job(stage, status={"conditions": [complete]})

    async def train(self) -> None:
        """Until the pod of the training runs."""
        await self.reconcile()
        self.end("prepare")
        await self.reconcile()
        running = {"name": "trainer", "state": {"running": {"startedAt": stamp(START)}}}
        self.pod("train", phase="Running", containerStatuses=[running])
        self.now += 60
        await self.reconcile()
        assert self.status["phase"] == "Training"

    def edit(self, **spec: Any) -> None:
        body = self.api.objects["FineTuneJob", "bot"]
        generation = body["metadata"]["generation"] + 1
        change = {"metadata": {"generation": generation}, "spec": spec}
        self.cache.observe("FineTuneJob", self.api.store("FineTuneJob", _merged(body, change)))


@pytest.mark.parametrize(
    ("code", "reason"),
    [(403, "NotAllowed"), (422, "Rejected"), (404, "APIServerError"), (500, "APIServerError"), (504, "APIServerError")],
)
async def test_a_child_that_is_refused_is_shown_at_once(code: int, reason: str) -> None:
    """Also before any status was written, and whether a policy, a webhook or the API server itself is the cause."""
    operator = Operator()
    operator.api.refuse["create", "Job"] = code
    again = await operator.reconcile()
    assert (operator.status["phase"], operator.status["reason"]) == ("Preparing", reason)
    assert "refused by a policy" in operator.status["message"]
    assert again.retry == f"blocked:{reason}"


async def test_what_is_known_is_shown_when_a_child_gets_no_answer() -> None:
    operator = Operator()
    operator.api.refuse["create", "Job"] = 429
    with pytest.raises(ApiError):
        await operator.reconcile()
    assert operator.status["phase"] == "Preparing"


async def test_a_refused_suspension_is_shown() -> None:
    operator = Operator()
    await operator.train()
    operator.edit(suspend=True)
    operator.api.refuse["change", "Job"] = 403
    await operator.reconcile()
    assert (operator.status["phase"], operator.status["reason"]) == ("Training", "NotAllowed")
    assert operator.status["observedGeneration"] == 2


async def test_a_refused_deletion_is_shown() -> None:
    operator = Operator()
    await operator.train()
    operator.job("train", metadata={"labels": {"kueue.x-k8s.io/queue-name": "team"}})
    operator.edit(suspend=True)
    operator.api.refuse["delete", "Job"] = 403
    again = await operator.reconcile()
    assert (operator.status["phase"], operator.status["reason"]) == ("Queued", "NotAllowed")
    assert again.retry == "blocked:delete"


def foreign(name: str) -> Object:
    return {"kind": "Job", "metadata": {"name": name, "namespace": "team"}, "spec": {"suspend": False}}


async def test_a_foreign_job_of_the_same_name_is_neither_used_nor_changed() -> None:
    operator = Operator(suspend=True)
    await operator.reconcile()
    name = f"bot-{operator.status['run']}-prepare-1"
    there = operator.api.store("Job", foreign(name))
    operator.edit(suspend=False)
    await operator.reconcile()
    assert (operator.status["phase"], operator.status["reason"]) == ("Preparing", "NameTaken")
    assert operator.api.objects["Job", name] == there
    del operator.api.objects["Job", name]
    operator.edit(retry={"infra": 1})
    await operator.reconcile()
    assert operator.status["reason"] == "Starting"
    assert operator.job("prepare")["metadata"]["ownerReferences"]


async def test_a_job_that_took_the_name_meanwhile_is_not_suspended() -> None:
    operator = Operator()
    await operator.train()
    (name,) = operator.trainings()
    there = operator.api.store("Job", foreign(name))
    operator.edit(suspend=True)
    with pytest.raises(ApiError):
        await operator.reconcile()
    assert operator.api.objects["Job", name] == there


async def test_new_wording_waits_for_the_budget_and_news_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = Operator()
    await operator.reconcile()

    def unschedulable(resource: str) -> Object:
        message = f"0/3 nodes are available: 3 Insufficient {resource}."
        since = {"lastTransitionTime": stamp(START - 9)}
        return {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message, **since}

    monkeypatch.setattr(operator.budget, "delay", lambda now: 1.5)
    operator.pod("prepare", phase="Pending", conditions=[unschedulable("cpu")])
    await operator.reconcile()
    assert operator.status["reason"] == "Unschedulable"
    operator.pod("prepare", phase="Pending", conditions=[unschedulable("memory")])
    with pytest.raises(Deferred):
        await operator.reconcile()
    assert "3 Insufficient cpu" in operator.status["message"]


async def test_a_deleted_job_is_not_replaced_before_its_pods_have_ended() -> None:
    """A Job is gone at once, and its pods save a checkpoint for minutes."""
    operator = Operator()
    await operator.train()
    job = operator.job("train", metadata={"labels": {"kueue.x-k8s.io/queue-name": "team"}})
    operator.edit(suspend=True)
    await operator.reconcile()
    assert operator.trainings() == []
    assert (operator.status["phase"], operator.status["reason"]) == ("Queued", "Suspending")
    operator.edit(suspend=False)
    await operator.reconcile()
    assert operator.trainings() == []
    pod = f"{job['metadata']['name']}-0"
    assert f"Waiting for pod {pod} to end" in operator.status["message"]
    operator.cache.forget("Pod", "team", pod, operator.api.objects["Pod", pod]["metadata"]["uid"])
    await operator.reconcile()
    assert operator.trainings() == [job["metadata"]["name"].removesuffix("1") + "2"]


async def test_a_gang_is_not_doubled_when_its_labels_are_removed() -> None:
    """Watches no longer show its Job and pod, as if both were gone."""
    operator = Operator()
    await operator.train()
    job = operator.job("train")
    (pod,) = [body for (kind, name), body in operator.api.objects.items() if kind == "Pod" and "-train-" in name]
    lost = operator.api.store("Job", job | {"metadata": job["metadata"] | {"labels": {}}})
    for kind, body in (("Pod", pod), ("Job", lost)):
        metadata = body["metadata"]
        operator.cache.forget(kind, "team", metadata["name"], metadata["uid"], version_of(body))
    await operator.reconcile()
    assert operator.status["reason"] == "NameTaken"
    assert f"Job {job['metadata']['name']} has lost its finetune.dev labels" in operator.status["message"]
    assert operator.trainings() == [job["metadata"]["name"]]
    operator.cache.observe("Job", operator.api.store("Job", job))
    operator.cache.observe("Pod", operator.api.store("Pod", pod))
    await operator.reconcile()
    assert (operator.status["phase"], operator.status["reason"]) == ("Training", "Training")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"training": {"novelty": 1}}, "InvalidSpec"),
        ({"novelty": 1}, "InvalidSpec"),
        ({"pods": None}, "NoTrainerImage"),
    ],
)
async def test_a_spec_that_cannot_be_carried_out_is_no_end_of_what_runs(change: dict[str, Any], reason: str) -> None:
    """A newer CRD has other fields; an image may be removed. Suspension and ends count all the same."""
    operator = Operator(image=None, pods={"common": {"image": "trainer:1"}})
    await operator.train()
    operator.edit(**change)
    await operator.reconcile()
    assert operator.status["phase"] == "Training"
    assert operator.status["attempts"][-1]["outcome"] == "Running"
    operator.edit(suspend=True)
    await operator.reconcile()
    assert operator.job("train")["spec"]["suspend"] is True
    assert operator.status["reason"] == "Suspending"
    operator.edit(suspend=False)
    operator.end("train")
    await operator.reconcile()
    assert operator.status["attempts"][-1]["outcome"] == "Succeeded"
    assert operator.status["reason"] == reason
    assert operator.status["phase"] not in ("Failed", "Completed")
    assert not [name for kind, name in operator.api.objects if kind == "Job" and "-publish-" in name]
    operator.edit(training=None, novelty=None, pods={"common": {"image": "trainer:1"}})
    await operator.reconcile()
    assert operator.status["phase"] == "Publishing"


async def test_a_budget_is_kept_to_while_the_spec_cannot_be_read() -> None:
    operator = Operator(budget={"maxDuration": "10m"})
    await operator.train()
    operator.edit(training={"novelty": 1})
    await operator.reconcile()
    assert operator.job("train")["spec"]["suspend"] is False
    operator.now += 600
    await operator.reconcile()
    assert operator.job("train")["spec"]["suspend"] is True


async def test_a_field_of_a_status_that_cannot_be_read_is_kept() -> None:
    operator = Operator()
    await operator.reconcile()
    body = operator.api.objects["FineTuneJob", "bot"]
    written = _merged(body, {"status": {"gpus": "many", "novelty": [1]}})
    operator.cache.observe("FineTuneJob", operator.api.store("FineTuneJob", written))
    await operator.reconcile()
    assert operator.status["reason"] == "UnreadableStatus"
    assert (operator.status["gpus"], operator.status["novelty"]) == ("many", [1])
    assert operator.status["attempts"] == written["status"]["attempts"]
    assert [kind for kind, _ in operator.api.objects] == ["FineTuneJob", "Job"]


async def test_a_status_that_may_not_be_written_is_told_by_one_event() -> None:
    operator = Operator()
    operator.api.refuse["status", "FineTuneJob"] = 403
    for _ in range(3):
        with pytest.raises(ApiError):
            await operator.reconcile()
    (event,) = await operator.events()
    assert (event["type"], event["reason"], event["regarding"]["name"]) == ("Warning", "NotAllowed", "bot")
    assert "may not write the job's status: status FineTuneJob refused by a policy" in event["note"]


async def test_a_status_write_that_finds_nothing_does_not_end_the_job() -> None:
    operator = Operator()
    operator.api.refuse["status", "FineTuneJob"] = 404
    with pytest.raises(Conflict):
        await operator.reconcile()
    operator.api.refuse.clear()
    await operator.reconcile()
    assert operator.status["phase"] == "Preparing"


async def test_a_condition_that_another_controller_adds_meanwhile_stays() -> None:
    operator = Operator()
    await operator.reconcile()
    theirs = {"type": "example.com/Audited", "status": "True", "reason": "Done", "lastTransitionTime": stamp(START)}
    body = operator.api.objects["FineTuneJob", "bot"]
    conditions = [*body["status"]["conditions"], theirs]
    operator.api.store("FineTuneJob", _merged(body, {"status": {"conditions": conditions}}))
    operator.pod(
        "prepare",
        phase="Pending",
        containerStatuses=[{"name": "trainer", "state": {"waiting": {"reason": "ErrImagePull"}}}],
    )
    with pytest.raises(Conflict):
        await operator.reconcile()
    await operator.reconcile()
    assert operator.status["reason"] == "ImagePullFailed"
    assert theirs["type"] in [condition["type"] for condition in operator.status["conditions"]]
