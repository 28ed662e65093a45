"""A job's life on a real API server with real controllers."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from .attempts import DONE, history
from .conftest import now

pytestmark = [pytest.mark.control, pytest.mark.usefixtures("operator")]

POD_IP = "127.77.0.1"


def test_the_whole_way(api: Any, jobs: Any, kubelet: Any, acts: Any, operator: Any) -> None:
    """Stages one after the other, what they found in the status, children as designed, and kopf writes nothing."""
    kubelet.script = acts.hold_training
    jobs.create(compute={"nodes": 2, "gpusPerNode": 4})
    jobs.wait("Training")
    time.sleep(1.1)  # times in objects are whole seconds, and a training of none uses nothing
    kubelet.script = acts.succeed
    status = jobs.wait("Completed")
    assert history(status) == DONE
    assert (status["data"]["rows"], status["plan"]["steps"], status["evaluation"]["rows"]) == (100, 15, 10)
    assert (status["artifacts"]["uri"], status["gpus"], status["progress"]["percent"]) == ("pvc://models/out", 8, 100)
    assert status["lastCheckpoint"]["step"] == 15
    assert status["usage"]["gpuSeconds"] >= 0
    assert len(kubelet.of("train")) == 2
    train = next(job for job in jobs.children() if job["metadata"]["labels"]["finetune.dev/stage"] == "train")
    assert train["spec"]["suspend"] is False
    rank = next(pod for pod in kubelet.of("train") if pod["spec"]["hostname"].endswith("-1"))
    variables = {v["name"]: v.get("value") for v in rank["spec"]["containers"][0]["env"]}
    assert variables["FINETUNE_MASTER_ADDR"] == f"{train['metadata']['name']}-0.{train['metadata']['name']}"
    assert rank["spec"]["subdomain"] == train["metadata"]["name"]
    assert variables.keys() >= {"JOB_COMPLETION_INDEX", "FINETUNE_NODE_NAME", "FINETUNE_POD_NAME"}

    job = jobs.get()
    assert not job["metadata"].get("finalizers")
    assert not job["metadata"].get("annotations")
    writers = {(m["manager"], m.get("subresource")) for m in job["metadata"]["managedFields"]}
    assert {w for w in writers if w[1] == "status"} == {("finetune-operator", "status")}
    assert all("kopf" not in manager for manager, _ in writers)
    assert not {w for w in writers if w[0] == "finetune-operator" and w[1] is None}, "the spec is the user's"

    jobs.until("the last event", lambda: "Completed" in [e["reason"] for e in jobs.events()])
    events = sorted(jobs.events(), key=lambda e: e["eventTime"])
    assert [e["reason"] for e in events if e["type"] == "Normal"] == ["StageStarted", "StageDone"] * 3 + ["Completed"]
    # On a busy machine a pod or claim that has to wait is told about as well, with a write when it begins and when it ends.
    waited = len([e for e in events if e["type"] == "Warning"])
    # 3 Jobs, a Service, a release, four states, and each stage that runs for more than a moment.
    logged = [line for line in operator.lines() if line.get("namespace") == jobs.namespace]
    assert len(logged) <= 12 + 2 * waited, logged
    assert {line["level"] for line in logged} == {"info"}


def test_bad_data_fails_at_once_with_its_sentence(jobs: Any, kubelet: Any, acts: Any) -> None:
    cause = {"code": "InvalidData", "message": "spec.data.train: train.jsonl line 7 has no answer", "remedy": "Add one"}
    kubelet.script = lambda pod: acts.Act(3, acts.said("prepare", "failed", 3, cause=cause))
    jobs.create()
    status = jobs.wait("Failed")
    assert (status["failure"]["code"], status["failure"]["message"]) == ("InvalidData", cause["message"])
    assert (status["failure"]["exitCode"], status["failure"]["node"]) == (3, "test-node")
    assert jobs.condition("Stalled")["status"] == "True"
    time.sleep(1)
    assert len(jobs.children()) == 1
    assert not kubelet.of("train")
    failures = lambda: [e for e in jobs.events() if (e["type"], e["reason"]) == ("Warning", "Failed")]  # noqa: E731
    jobs.until("it is told", failures)
    assert len(failures()) == 1


@pytest.mark.parametrize("stage", ["prepare", "train"])
def test_suspend_and_resume(jobs: Any, kubelet: Any, acts: Any, stage: str) -> None:
    """The pods get their SIGTERM, end with 5, and the same Job goes on later."""

    def hold(pod: Any) -> Any:
        return acts.Act(hold=True) if pod["metadata"]["labels"]["finetune.dev/stage"] == stage else acts.succeed(pod)

    kubelet.script = hold
    jobs.create(compute={"device": "cpu", "nodes": 2})
    jobs.until("it runs", lambda: jobs.condition("Running").get("status") == "True" and kubelet.of(stage))
    jobs.until("in this stage", lambda: jobs.status()["phase"] == {"prepare": "Preparing", "train": "Training"}[stage])
    jobs.patch(suspend=True)
    status = jobs.wait("Suspended")
    assert jobs.condition("Suspended")["status"] == "True"
    if stage == "train":
        assert status["lastCheckpoint"]["step"] == 7
    assert not jobs.api.items(f"/api/v1/namespaces/{jobs.namespace}/pods", fieldSelector="status.phase=Running")
    kubelet.script = acts.succeed
    jobs.patch(suspend=False)
    assert history(jobs.wait("Completed")) == DONE, "one Job a stage"


def test_suspended_from_the_start_creates_nothing(jobs: Any, kubelet: Any) -> None:
    jobs.create(suspend=True)
    jobs.wait("Suspended")
    assert not jobs.children()
    jobs.patch(suspend=False)
    jobs.wait("Completed")


@pytest.mark.parametrize("phase", ["Pending", "Preparing", "Training", "Publishing", "Suspended", "Completed"])
def test_deleting_at_any_moment_leaves_nothing(jobs: Any, kubelet: Any, acts: Any, phase: str) -> None:
    stage = {"Preparing": "prepare", "Training": "train", "Suspended": "train", "Publishing": "publish"}.get(phase)

    def hold(pod: Any) -> Any:
        return acts.Act(hold=True) if pod["metadata"]["labels"]["finetune.dev/stage"] == stage else acts.succeed(pod)

    kubelet.script = hold
    jobs.create(compute={"device": "cpu", "nodes": 2})
    if phase == "Suspended":
        jobs.wait("Training")
        jobs.patch(suspend=True)
    if phase != "Pending":
        jobs.wait(phase)
    jobs.delete()

    def nothing_comes_back() -> bool:
        """A Job that was being created while its owner went is the garbage collector's, in its own time."""
        for _ in range(5):
            if any(jobs.children(kind) for kind in ("jobs", "services", "pods")):
                return False
            time.sleep(0.1)
        return True

    jobs.until("nothing is left, and nothing comes back", nothing_comes_back)


def test_a_deleted_pod_costs_no_more_than_the_steps_since_the_stop(
    api: Any, jobs: Any, kubelet: Any, acts: Any
) -> None:
    """The ranks agree to stop and save; the next attempt is a new Job, which the Job controller's pause does not touch."""
    kubelet.script = acts.hold_training
    jobs.create(compute={"device": "cpu", "nodes": 2})
    jobs.wait("Training")
    first, second = sorted(kubelet.of("train"), key=lambda pod: pod["spec"]["hostname"])
    api.delete(kubelet.path(second))
    kubelet.end(first, 5, acts.said("train", "stopped", 5, step=7, lastCheckpoint={"step": 7}))
    jobs.until("attempt 2", lambda: len(kubelet.of("train", 2)) == 2)
    assert len(kubelet.of("train", 1)) == 2, "the Job controller, which pauses first, replaced none"
    status = jobs.wait("Training")
    assert (status["lastCheckpoint"]["step"], status["attempts"][1]["lastStep"]) == (7, 7)
    kubelet.script = acts.succeed
    assert history(jobs.wait("Completed")) == [DONE[0], ("train", 1, "Stopped"), ("train", 2, "Succeeded"), DONE[2]]


def test_a_disrupted_gang_goes_on_in_a_new_attempt_without_limit(jobs: Any, kubelet: Any, acts: Any) -> None:
    kubelet.script = acts.hold_training
    jobs.create(compute={"device": "cpu", "nodes": 2}, retry={"infra": 0})
    jobs.wait("Training")
    first, second = sorted(kubelet.of("train"), key=lambda pod: pod["spec"]["hostname"])
    kubelet.disrupt(second, "DeletionByTaintManager")
    kubelet.end(second, 137, "")
    kubelet.end(first, 7, acts.said("train", "failed", 7, step=9, lastCheckpoint={"step": 8}))
    jobs.wait_reason("Resuming")
    assert jobs.condition("Ready")["status"] == "True"
    kubelet.script = acts.succeed
    status = jobs.wait("Completed")
    assert history(status) == [DONE[0], ("train", 1, "Evicted"), ("train", 2, "Succeeded"), DONE[2]]
    assert "infraFailures" not in json.loads(status["state"])
    assert (status["attempts"][1]["lastStep"], status["attempts"][1]["reason"]) == (9, "Evicted")
    job = next(j for j in jobs.children() if j["metadata"]["name"].endswith("train-2"))
    assert json.loads(job["metadata"]["annotations"]["finetune.dev/previous-attempt"])["outcome"] == "Evicted"


@pytest.mark.parametrize("first", ["killed", "peer"])
def test_a_killed_rank_is_blamed_by_an_operator_that_looks_late(
    api: Any, namespace: str, jobs: Any, kubelet: Any, acts: Any, operator: Any, first: str
) -> None:
    """Whichever rank ends first fails the Job, whose controller deletes the other; that one is gone before the operator looks."""
    kubelet.script = lambda pod: replace(acts.hold_training(pod), stop_seconds=3600)
    jobs.create(compute={"device": "cpu", "nodes": 2})
    jobs.wait("Training")
    peer, killed = sorted(kubelet.of("train"), key=lambda pod: pod["spec"]["hostname"])
    lost = acts.said("train", "failed", 7, step=9, cause={"code": "PeerLost", "message": "another process is gone"})
    ends = [(killed, 137, ""), (peer, 7, lost)]
    one, other = ends if first == "killed" else reversed(ends)
    operator.process.send_signal(signal.SIGSTOP)
    try:
        both = now()
        kubelet.end(*one)
        jobs.until("the other is deleted", lambda: "deletionTimestamp" in api.get(kubelet.path(other[0]))["metadata"])
        kubelet.end(*other, finished=both)
        kubelet.script = acts.succeed
        present = lambda: [pod["metadata"]["name"] for pod in api.items(f"/api/v1/namespaces/{namespace}/pods")]  # noqa: E731
        jobs.until("the other is gone", lambda: other[0]["metadata"]["name"] not in present())
    finally:
        operator.process.send_signal(signal.SIGCONT)
    attempt = jobs.wait("Completed")["attempts"][1]
    assert (attempt["outcome"], attempt["reason"]) == ("Failed", "Killed"), attempt


def test_retries_are_used_up(jobs: Any, kubelet: Any, acts: Any) -> None:
    kubelet.script = lambda pod: acts.Act(1, "Traceback (most recent call last):\nRuntimeError: the disk is on fire")
    jobs.create(retry={"infra": 2})
    status = jobs.wait("Failed")
    assert history(status) == [("prepare", n, "Failed") for n in (1, 2, 3)]
    assert json.loads(status["state"])["infraFailures"] == 3
    assert "the disk is on fire" in status["failure"]["message"]
    assert "spec.retry.infra 2 is used up" in status["failure"]["message"]
    # Each attempt began after the one before had ended.
    ends = [a["finished"] for a in status["attempts"]]
    made = [j["metadata"]["creationTimestamp"] for j in jobs.children()]
    assert all(made[n + 1] >= ends[n] for n in range(2))


def test_deleted_and_created_again_under_the_same_name_starts_afresh(jobs: Any, kubelet: Any, acts: Any) -> None:
    kubelet.script = acts.hold_training
    jobs.create()
    before = jobs.wait("Training")["run"]
    jobs.delete()
    jobs.until("it is gone", lambda: not jobs.status())
    kubelet.script = acts.succeed
    jobs.create()
    status = jobs.wait("Completed")
    assert status["run"] != before
    assert history(status) == DONE


def test_run_again_by_a_new_token(jobs: Any, kubelet: Any) -> None:
    jobs.create()
    first = jobs.wait("Completed")
    for child in jobs.children():  # terminal is terminal, whatever happens to its children
        jobs.api.delete(f"/apis/batch/v1/namespaces/{jobs.namespace}/jobs/{child['metadata']['name']}")
    time.sleep(0.5)
    assert jobs.status()["phase"] == "Completed"
    jobs.patch(runToken="again")
    jobs.until("it runs again", lambda: jobs.status()["run"] != first["run"])
    second = jobs.wait("Completed")
    assert history(second) == DONE
    assert all(second["run"] in child["metadata"]["name"] for child in jobs.children())


def test_time_to_live(jobs: Any, kubelet: Any) -> None:
    jobs.create(ttlSecondsAfterFinished=0)
    jobs.wait("Completed")
    jobs.until("the children are gone", lambda: not jobs.children() and not jobs.children("services"))
    assert jobs.status()["phase"] == "Completed"


def test_a_foreign_manager_is_left_alone(jobs: Any, kubelet: Any) -> None:
    jobs.create("other", managedBy="kueue.x-k8s.io/multikueue")
    jobs.create("ours")
    jobs.wait("Completed", "ours")
    assert jobs.status("other") == {"observedGeneration": -1}


@pytest.mark.parametrize(
    ("label", "value", "shown"),
    [("app.kubernetes.io/managed-by", "a-policy", "Training"), ("finetune.dev/job-uid", None, "Resuming")],
)
def test_a_gang_stays_one_when_a_label_of_its_job_is_rewritten(
    api: Any, jobs: Any, kubelet: Any, acts: Any, label: str, value: str | None, shown: str
) -> None:
    """Tools and policies do that. It is followed again when the label is restored."""
    kubelet.script = acts.hold_training
    jobs.create(compute={"device": "cpu", "nodes": 2})
    jobs.until("all its pods run", lambda: jobs.status().get("message") == "Training on 2 nodes")
    (train,) = [job for job in jobs.children() if "-train-" in job["metadata"]["name"]]
    path = f"/apis/batch/v1/namespaces/{jobs.namespace}/jobs/{train['metadata']['name']}"
    api.merge(path, {"metadata": {"labels": {label: value}}})
    time.sleep(1)
    jobs.wait_reason(shown)
    assert (label in jobs.status()["message"]) == (value is None)
    api.merge(path, {"metadata": {"labels": {label: train["metadata"]["labels"][label]}}})
    jobs.wait_reason("Training")
    kubelet.script = acts.succeed
    assert history(jobs.wait("Completed")) == DONE
    assert len(kubelet.of("train")) == 2


def test_settings_count_at_once_while_nothing_ran(jobs: Any, kubelet: Any, acts: Any) -> None:
    """A stage whose image was wrong recovers when the user corrects it, with no other help."""

    def by_image(pod: Any) -> Any:
        if pod["spec"]["containers"][0]["image"] == "wrong":
            return acts.Act(waiting=("ErrImagePull", "not found"))
        return acts.succeed(pod)

    kubelet.script = by_image
    jobs.create(pods={"common": {"image": "wrong"}})
    jobs.wait_reason("ImagePullFailed")
    jobs.patch(pods={"common": {"image": "right"}})
    status = jobs.wait("Completed")
    assert history(status) == [("prepare", 1, "Stopped"), ("prepare", 2, "Succeeded"), *DONE[1:]]


@pytest.fixture
def endpoint(progress_port: int) -> Iterator[dict[str, Any]]:
    """Rank 0's endpoint. What is put into the answer is served."""
    answer: dict[str, Any] = {"body": b""}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer["body"])

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer((POD_IP, progress_port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield answer
    server.shutdown()
    server.server_close()


def test_progress_reaches_the_status_and_is_not_trusted(
    jobs: Any, kubelet: Any, acts: Any, endpoint: dict[str, Any], eventually: Callable[..., Any]
) -> None:
    kubelet.script = acts.hold_training
    kubelet.pod_ip = POD_IP
    told = {
        "contract": 1,
        "stage": "train",
        "step": 120,
        "totalSteps": 288,
        "percent": 42.6,
        "etaSeconds": 192.4,
        "loss": 1.23456789,
        "tokensPerSecond": 1000.04,
        "epoch": 1.25,
        "resumedFromStep": 60,
        "lastCheckpoint": {"step": 100},
        "surprise": {"nested": True},
    }
    endpoint["body"] = json.dumps(told).encode()
    jobs.create()
    eventually(
        "progress", lambda: jobs.status().get("progress", {}).items() >= {"stage": "train", "percent": 42}.items()
    )
    status = jobs.status()
    shown = status["progress"]
    assert (shown["summary"], shown["eta"], shown["loss"], shown["step"]) == ("42% 120/288", "3m12s", 1.23457, 120)
    assert (status["lastCheckpoint"]["step"], status["attempts"][-1]["resumedFromStep"]) == (100, 60)
    for nonsense in (b"[" * 70_000, b'{"stage":"train","percent":1e9}'):
        endpoint["body"] = nonsense
        eventually("it is told", lambda: jobs.condition("ProgressUnknown").get("status") == "True")
        assert jobs.status()["progress"]["percent"] == 42
        assert jobs.status()["phase"] == "Training"
        endpoint["body"] = json.dumps(told).encode()
        eventually("it is well again", lambda: not jobs.condition("ProgressUnknown"))
    kubelet.script = acts.succeed
    jobs.wait("Completed")
