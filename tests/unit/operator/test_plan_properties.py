"""Whatever happens, in whatever order, with a crash after any write: what always holds of plans."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
from finetune_api.status import STAGES
from finetune_operator.domain.names import child_name, run_of
from finetune_operator.domain.observed import Refusal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXITS = (0, 1, 3, 4, 5, 5, 6, 7, 137)


class Story:
    """Things that happen to one job, drawn by hypothesis. Between them plans are carried out, some only in part."""

    def __init__(self, world: Any, words: Any, nodes: int) -> None:
        self.world, self.words, self.nodes = world, words, nodes
        self.budgeted: dict[str, Any] = {}
        """What prepare tells, of a story of budgets and approvals."""
        self.refusing = False
        self.ended: dict[str, Any] | None = None
        self.done: dict[str, str] = {}

    def happen(self, what: str, number: int) -> None:
        getattr(self, what)(number)
        self.check()

    # What happens.

    def look(self, number: int) -> None:
        """A whole plan, or a crash after some of its writes."""
        self.world.step(upto=number % 5 if number % 2 else None)

    def wait(self, number: int) -> None:
        self.world.now += (0.4, 6, 40, 400)[number % 4]

    def pods_run(self, number: int) -> None:
        job = self._live_job()
        if job is not None and not job.suspended:
            for index in range(self.nodes if job.stage == "train" else 1):
                if number & (1 << index):
                    self._on(job, index, phase="Running", node="n", ip="10.0.0.1", running_since=self.world.now)

    def pod_ends(self, number: int) -> None:
        job = self._live_job()
        pods = [p for p in self.world.pods.get(job.name, {}).values() if p.running] if job else []
        if job is None or not pods:
            return
        pod, code = pods[number % len(pods)], EXITS[number % len(EXITS)]
        outcome = {0: "succeeded", 5: "stopped"}.get(code, "failed")
        step = {"step": number, "lastCheckpoint": {"step": number}}
        text = self.words(job.stage, outcome, code, time=self.world.now, **step) if number % 2 else "Traceback"
        self._on(job, pod.index, **self.world.ended(code, text))

    def a_stage_ends(self, number: int) -> None:
        """All of it at once, or stories would seldom see a second stage."""
        self.world.settle()
        job = self._live_job()
        if job is None or job.suspended:
            return
        code = EXITS[number % len(EXITS)] if number % 2 else 0
        self.pods_run(3)
        self.world.step()
        for index in range(self.nodes if job.stage == "train" else 1):
            outcome = {0: "succeeded", 5: "stopped"}.get(code, "failed")
            told = self.budgeted if job.stage == "prepare" and code == 0 else {}
            text = self.words(job.stage, outcome, code, time=self.world.now, **told)
            self._on(job, index, **self.world.ended(code, text))
        self.job_controller(0)

    def pod_is_deleted(self, number: int) -> None:
        job = self._live_job()
        pods = [p for p in self.world.pods.get(job.name, {}).values() if not p.over] if job else []
        if job is not None and pods:
            pod = pods[number % len(pods)]
            self.world.pods[job.name][pod.name] = replace(
                pod,
                deletion_asked=self.world.now,
                deletion_due=self.world.now + 30,
                disrupted="drain" if number % 2 else None,
            )

    def pods_vanish(self, number: int) -> None:
        job = self._live_job()
        if job is not None:
            self.world.pods[job.name] = {}

    def job_controller(self, number: int) -> None:
        """What the real one does: fail, complete, or go on."""
        job = self._live_job()
        if job is None:
            return
        pods = list(self.world.pods.get(job.name, {}).values())
        wanted = self.nodes if job.stage == "train" else 1
        if any(p.over and p.phase == "Failed" and p.ended.exit_code != 5 for p in pods):
            self._job(job, failing=self.world.now, failed=self.world.now if all(p.over for p in pods) else None)
        elif len({p.index for p in pods if p.phase == "Succeeded"}) == wanted:
            self._job(job, complete=self.world.now)

    def job_is_deleted(self, number: int) -> None:
        if self.world.jobs:
            name = sorted(self.world.jobs)[number % len(self.world.jobs)]
            self.world.jobs.pop(name)
            self.world.pods.pop(name, None)

    def restart(self, number: int) -> None:
        """A new operator knows only what the API server holds."""
        self.world.known.clear()
        self.world.refusals.clear()

    def user_suspends(self, number: int) -> None:
        self.world.edit(suspend=bool(number % 2))

    def user_changes_pods(self, number: int) -> None:
        self.world.edit(pods={"common": {"image": f"trainer:{number % 3}"}})

    def user_asks_for_another_run(self, number: int) -> None:
        self.world.edit(runToken=f"t{number % 3}")

    def user_changes_the_budget(self, number: int) -> None:
        """Of a story that has one: tight, wide, or with an approval of the plan that stands."""
        if self.budgeted:
            digest = self.world.status.get("plan", {}).get("digest") if number % 3 else "sha256:other"
            limit = {"maxDuration": ("1s", "2m", "9h", "9h")[number % 4]}
            self.world.edit(budget={"approval": "Manual", "approvedPlan": digest} | limit)

    def user_changes_the_mode(self, number: int) -> None:
        if self.budgeted:
            self.world.edit(mode=("Plan", "Run", "Run")[number % 3])

    def user_changes_compute(self, number: int) -> None:
        """Of a story of budgets: to something that may not go with what was decided."""
        if self.budgeted:
            offload = {"offload": {"optimizer": "cpu"}} if number % 3 == 1 else {}
            strategy = {"strategy": ("zero2", "ddp", "fsdp2")[number % 3]} if number % 2 and not offload else {}
            self.world.edit(compute={"device": "cpu"} | offload | strategy)

    def api_server_refuses(self, number: int) -> None:
        """Jobs of trainings, until it does no more."""
        self.refusing = self.budgeted != {} and bool(number % 3)
        if not self.refusing:
            self.world.refusals.clear()

    # What always holds.

    def check(self) -> None:
        status = self.world.status
        if not status:
            return
        book = status.get("attempts", [])
        assert len(book) <= 10
        assert len(self.world.state.get("checkpoints", [])) <= 10
        assert len(status.get("conditions", [])) <= 16
        assert sum(c["message"] == status["message"] for c in status["conditions"]) <= 3
        assert sum(a["outcome"] == "Running" for a in book) <= 1
        for stage in STAGES:
            numbers = [a["number"] for a in book if a["stage"] == stage]
            assert numbers == sorted(set(numbers))
            assert sum(a["stage"] == stage and a["outcome"] == "Succeeded" for a in book) <= 1
        kinds = {c["type"] for c in status["conditions"] if c["status"] == "True"}
        assert not {"Ready", "Stalled"} <= kinds
        assert not {"Complete", "Failed"} <= kinds
        assert ("Failed" in kinds) == (status["phase"] == "Failed") == ("failure" in status)
        self._terminal_is_terminal(status)
        self._one_gang_at_a_time(status)

    def _terminal_is_terminal(self, status: dict[str, Any]) -> None:
        planned = self.ended is not None and self.ended["reason"] == "Planned"
        if self.ended is not None and self.ended["run"] == status["run"] and not planned:
            assert status["phase"] == self.ended["phase"]
            assert status.get("attempts") == self.ended.get("attempts")
        self.ended = copy.deepcopy(status) if status["phase"] in ("Completed", "Failed") else None

    def _one_gang_at_a_time(self, status: dict[str, Any]) -> None:
        """No Job of a run but the newest attempt's can have a pod that runs."""
        unfinished = [
            j for j in self.world.jobs.values() if j.complete is None and j.failed is None and j.failing is None
        ]
        of_run = [j for j in unfinished if j.run == status["run"]]
        assert len(of_run) <= 1, of_run
        attempts = {a["job"]: a for a in status.get("attempts", [])}
        done = {a["stage"] for a in attempts.values() if a["outcome"] == "Succeeded"}
        for job in of_run:
            assert set(STAGES[: STAGES.index(job.stage)]) <= done, "a stage begins when the one before is on record"
        for job in self.world.jobs.values():
            if job.run == status["run"] and job.attempt > 1:
                before = f"-{job.stage}-{job.attempt - 1}"
                verdicts = [a["outcome"] for name, a in attempts.items() if name.endswith(before)]
                assert verdicts != ["Running"], "the verdict comes before the next attempt"

    # Tools.

    def _live_job(self) -> Any:
        live = [j for j in self.world.jobs.values() if j.complete is None and j.failed is None]
        return max(live, key=lambda j: j.created) if live else None

    def _job(self, job: Any, **change: Any) -> None:
        self.world.jobs[job.name] = replace(job, **change)

    def _on(self, job: Any, index: int, **change: Any) -> None:
        self.world.pod_of(job, index, **change)


HAPPENINGS = [name for name in vars(Story) if not name.startswith("_") and name not in ("happen", "check")]
STORIES = st.lists(
    st.tuples(
        # Looks and progress more often than catastrophes, so that stories get somewhere.
        st.one_of(
            st.sampled_from(["look", "a_stage_ends", "wait", "pods_run", "pod_ends", "job_controller"]),
            st.sampled_from(HAPPENINGS),
        ),
        st.integers(0, 2**10),
    ),
    max_size=60,
)
STORIES_OF_MONEY = st.lists(
    st.tuples(
        st.one_of(
            st.sampled_from(["look", "wait", "pods_run", "user_changes_the_budget", "a_stage_ends"]),
            st.sampled_from(HAPPENINGS),
        ),
        st.integers(0, 2**10),
    ),
    max_size=60,
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(story=STORIES, nodes=st.sampled_from([1, 2]), infra=st.integers(0, 2))
def test_whatever_happens(make_world: Any, words: Any, story: list[tuple[str, int]], nodes: int, infra: int) -> None:
    world = make_world(compute={"device": "cpu", "nodes": nodes}, retry={"infra": infra})
    world.share()
    told = Story(world, words, nodes)
    for what, number in story:
        told.happen(what, number)
    # Left alone, plans come to rest: carrying one out leaves nothing for the next.
    world.settle()
    told.check()
    drawn = world.plan()
    assert (drawn.create, drawn.patch, drawn.delete) == ((), (), ())
    assert drawn.status is None or drawn.status.wire() == world.status


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(story=STORIES_OF_MONEY, approved=st.booleans())
def test_nothing_is_asked_of_a_gpu_before_the_plan_is_accepted(
    make_world: Any, words: Any, prepared: Any, story: list[tuple[str, int]], approved: bool
) -> None:
    """And a budget that is spent is no failure, and seconds are counted once."""
    world = make_world(retry={"infra": 3}, budget={"approval": "Manual", "maxDuration": "9h"})
    told_story = told = Story(world, words, 1)
    told.budgeted = prepared
    prepared["decided"]["compute"] = {"strategy": "ddp"}
    create = world._create

    def created(body: dict[str, Any]) -> None:
        kind, name = body["kind"], body["metadata"]["name"]
        if body["metadata"]["labels"]["finetune.dev/stage"] == "train":
            assert world.condition("PlanAccepted") == "True", "an object of a training that nobody accepted"
            if kind == "Job":
                assert world.body["spec"]["budget"].get("approvedPlan") == world.status["plan"]["digest"]
                told = json.loads(body["spec"]["template"]["metadata"]["annotations"]["finetune.dev/run-config"])
                assert told["plan"]["digest"] == world.status["plan"]["digest"]
                if told_story.refusing:
                    world.refusals[kind, name] = Refusal(kind, name, 403, "exceeded quota")
                    return
        create(body)

    world._create = created
    told.a_stage_ends(0)
    if approved:  # before anything else, or few stories would train
        told.look(0)
        told.user_changes_the_budget(2)
    shown, trained, stretches = 0.0, 0.0, 0
    for what, number in story:
        before, since, said, ran = world.status, world.now, trains(world), runs(world)
        told.happen(what, number)
        status = world.status
        if status.get("run") != before.get("run"):
            shown, trained, stretches = 0.0, 0.0, 0
        else:
            shown += world.now - since if said or ran else 0
            trained += world.now - since if said and ran is not False else 0
        stretches += (trains(world) and not said) or status.get("usage") != before.get("usage")
        if status.get("reason") == "BudgetExhausted":
            assert "failure" not in status
        counted = world.usage.get("trainSeconds", 0)
        assert counted <= shown + 2 * stretches, "no second is counted twice"
        assert trains(world) or counted >= trained - 1e-3, "and none is lost"


def trains(world: Any) -> bool:
    return world.status.get("phase") == "Training" and world.condition("Running") == "True"


def runs(world: Any) -> bool | None:
    """The newest pod of the training, a gang of one. None: nobody can say."""
    pods = [p for j in world.jobs.values() if j.stage == "train" for p in world.pods.get(j.name, {}).values()]
    newest = max(pods, key=lambda p: int(p.uid.removeprefix("p-")), default=None)
    return None if newest is None else newest.running and newest.deletion_asked is None


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(story=STORIES)
def test_every_job_can_still_end_well(make_world: Any, words: Any, story: list[tuple[str, int]]) -> None:
    """No story leaves a job where a kind cluster could not bring it to an end."""
    world = make_world(retry={"infra": 100})
    told = Story(world, words, 1)
    for what, number in story:
        told.happen(what, number)
    world.edit(suspend=False)
    for _ in range(100):
        world.settle()
        if world.status["phase"] in ("Completed", "Failed"):
            break
        job = told._live_job()
        if job is not None and not job.suspended:
            told._on(job, 0, phase="Running", node="n", ip="10.0.0.1", running_since=world.now)
            world.settle()
            told._on(job, 0, **world.ended(0, words(job.stage)))
            told.job_controller(0)
        world.now += 301
    assert world.status["phase"] in ("Completed", "Failed"), world.status


@settings(max_examples=50)
@given(
    name=st.from_regex(r"\A[a-z]([-a-z0-9]{0,38}[a-z0-9])?\Z"),
    uid=st.uuids().map(str),
    token=st.none() | st.text(max_size=63),
    attempt=st.integers(1, 99),
    index=st.integers(0, 1023),
)
def test_names_are_dns_labels(name: str, uid: str, token: str | None, attempt: int, index: int) -> None:
    run = run_of(uid, token)
    assert run == run_of(uid, token)
    assert run != run_of(uid, (token or "") + "x")
    for stage in STAGES:
        host = f"{child_name(name, run, stage, attempt)}-{index}"
        assert len(host) <= 63
        assert host.replace("-", "").isalnum()
        assert host == host.lower()


@pytest.mark.parametrize("crash_after", range(6))
def test_a_crash_between_any_two_writes_of_a_plan(make_world: Any, crash_after: int) -> None:
    """At every point of a life, half a plan and a new operator lead to the same place."""
    world = make_world()
    for stage in STAGES:
        for _ in range(8):
            world.step(upto=crash_after)
            world.known.clear()
        world.settle()
        world.run(stage)
        world.step(upto=crash_after)
        world.settle()
        world.finish(stage)
        world.step(upto=crash_after)
        world.known.clear()
    world.settle()
    assert world.book == [(stage, 1, "Succeeded") for stage in STAGES]
    assert len(world.jobs) == 3
