"""`ftj run` and `ftj watch` against a real API server; the test writes the statuses that an operator would."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.control

ROOT = Path(__file__).resolve().parents[2]
JOBS = "/apis/finetune.dev/v1alpha1/namespaces/{}/finetunejobs"
JOB = {
    "apiVersion": "finetune.dev/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "bot"},
    "spec": {
        "model": {"uri": "pvc://models/base"},
        "method": {"type": "lora"},
        "data": {"train": [{"uri": "pvc://datasets/bot.jsonl"}]},
        "compute": {"device": "cpu"},
        "workspace": {"uri": "pvc://scratch"},
        "output": {"uri": "pvc://models/bot"},
    },
}
METRICS = [{"metric": "exact-match", "base": 0.0, "tuned": 0.975}, {"metric": "loss", "base": 3.2, "tuned": 0.04}]
COMPLETED = {
    "phase": "Completed",
    "reason": "Completed",
    "evaluation": {"rows": 200, "generatedRows": 200, "metrics": METRICS},
    "artifacts": {"uri": "pvc://models/bot", "files": 9, "bytes": 1234567},
}
FAILED = {
    "phase": "Failed",
    "reason": "InvalidData",
    "failure": {
        "code": "InvalidData",
        "stage": "prepare",
        "message": "bot.jsonl, line 3: not JSON",
        "remedy": "Mend it",
    },
}


class Ftj:
    """The command line in one namespace of the test's cluster."""

    def __init__(self, api: Any, namespace: str, folder: Path, eventually: Callable[..., Any]) -> None:
        self.api, self.namespace, self.eventually = api, namespace, eventually
        self.file = folder / "job.yaml"
        self.environment = {**os.environ, "KUBECONFIG": str(api.kubeconfig), "COLUMNS": "200"}
        self.started: list[subprocess.Popen[str]] = []

    def manifest(self, **spec: Any) -> str:
        self.file.write_text(yaml.safe_dump({**JOB, "spec": {**JOB["spec"], **spec}}))  # type: ignore[dict-item]
        return str(self.file)

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "finetune_cli", *arguments, "-n", self.namespace]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=180)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-u", "-m", "finetune_cli", *arguments, "-n", self.namespace]
        process = subprocess.Popen(
            command,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Where these tests run in the background, an interrupt is ignored by everything that they start.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # type: ignore[arg-type,return-value]
        )
        self.started.append(process)
        return process

    def job(self) -> Any:
        return self.api.find(f"{JOBS.format(self.namespace)}/bot")

    def say(self, **status: Any) -> None:
        """Write this status, as the operator does."""
        job = self.eventually("the job is there", self.job)
        status["observedGeneration"] = job["metadata"]["generation"]
        self.api.merge(f"{JOBS.format(self.namespace)}/bot/status", {"status": status})

    def ends(self, process: subprocess.Popen[str]) -> tuple[int, list[str], str]:
        out, err = process.communicate(timeout=180)
        return process.returncode, [line for line in out.splitlines() if line.strip()], err


@pytest.fixture
def ftj(api: Any, namespace: str, tmp_path: Path, eventually: Callable[..., Any]) -> Iterator[Ftj]:
    command = Ftj(api, namespace, tmp_path, eventually)
    yield command
    for process in command.started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_run_follows_a_job_to_its_end(ftj: Ftj) -> None:
    process = ftj.start("run", ftj.manifest(training={"learningRate": 2e-4}))
    ftj.say(phase="Preparing", reason="ImagePullFailed", message="The image x cannot be pulled. Correct it")
    assert process.stdout
    assert process.stdout.readline().strip().endswith("bot: lora on pvc://models/base, 1 pod")
    assert process.stdout.readline().strip() == "The image x cannot be pulled. Correct it."
    ftj.say(**COMPLETED, startTime="2026-01-01T00:00:00Z", completionTime="2026-01-01T00:02:03Z")
    code, lines, errors = ftj.ends(process)
    assert (code, errors) == (0, "")
    assert lines[-1] == "bot completed in 2m3s."
    assert any(line.split() == ["exact-match", "0.0%", "97.5%", "+97.5", "points"] for line in lines)
    assert f"Fetch them: ftj pull bot DIR -n {ftj.namespace}" in lines
    assert {entry["manager"] for entry in ftj.job()["metadata"]["managedFields"] if "subresource" not in entry} == {
        "ftj"
    }


def test_a_failed_job_is_exit_code_3_and_its_last_line(ftj: Ftj) -> None:
    process = ftj.start("run", ftj.manifest())
    ftj.say(**FAILED)
    code, lines, _ = ftj.ends(process)
    assert (code, lines[-1]) == (3, "bot Failed in prepare: bot.jsonl, line 3: not JSON. Mend it.")


def test_json_is_one_object_on_standard_output(ftj: Ftj) -> None:
    process = ftj.start("run", ftj.manifest(), "-o", "json")
    ftj.say(**FAILED)
    code, lines, errors = ftj.ends(process)
    assert code == 3
    body = json.loads("\n".join(lines))
    assert body["status"]["failure"]["code"] == "InvalidData"
    assert "managedFields" not in body["metadata"]
    assert "line 3: not JSON" in errors


def test_a_job_that_had_ended_is_not_started_again(ftj: Ftj) -> None:
    assert ftj("run", ftj.manifest(), "--no-follow").returncode == 0
    ftj.say(**COMPLETED)
    again = ftj("run", ftj.manifest())
    assert again.returncode == 0
    assert "had already ended (Completed); nothing was started" in again.stdout
    assert f"kubectl delete ftj bot -n {ftj.namespace}" in again.stdout
    token = ftj.start("run", ftj.manifest(runToken="again"))
    ftj.eventually("the new token", lambda: ftj.job()["metadata"]["generation"] == 2)
    ftj.say(**FAILED)  # the end of the new run, not of the old one, is what counts
    assert ftj.ends(token)[0] == 3


def test_an_interrupted_run_leaves_the_job(ftj: Ftj) -> None:
    process = ftj.start("run", ftj.manifest())
    ftj.say(phase="Training", reason="Training", message="Training on 1 node")
    assert process.stdout
    while "Training on 1 node" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)
    code, lines, errors = ftj.ends(process)
    assert (code, errors) == (130, "")
    assert lines[-1] == f"Stopped watching; the job continues. Watch it again: ftj watch bot -n {ftj.namespace}"
    assert ftj.job() is not None


def test_a_job_that_is_deleted_meanwhile(ftj: Ftj) -> None:
    process = ftj.start("run", ftj.manifest())
    ftj.say(phase="Training", reason="Training", message="Training on 1 node")
    ftj.api.delete(f"{JOBS.format(ftj.namespace)}/bot")
    code, _, errors = ftj.ends(process)
    assert (code, errors.strip()) == (3, f"FineTuneJob {ftj.namespace}/bot was deleted")


PLAN = {"digest": "4f2a", "steps": 150, "globalBatchSize": 16, "duration": "2h10m", "cost": 86.8}
WAITING = {"phase": "AwaitingApproval", "reason": "AwaitingApproval", "message": "Plan 4f2a waits", "plan": PLAN}


def test_a_plan_is_approved_while_run_waits(ftj: Ftj) -> None:
    """By its digest alone, and so that applying the manifest once more takes nothing back."""
    process = ftj.start("run", ftj.manifest(budget={"approval": "Manual", "maxCost": 100}))
    ftj.say(phase="Preparing", reason="Preparing", message="Reading the data")
    early = ftj("approve", "bot", "--yes")
    assert (early.returncode, early.stdout) == (3, "")
    assert early.stderr.startswith("bot does not wait for an approval: it is Preparing; follow it: ftj watch bot")
    ftj.say(**WAITING)
    assert process.stdout
    while "Approve it: ftj approve bot --plan 4f2a" not in (line := process.stdout.readline()):
        assert line
    unasked = ftj("approve", "bot")
    assert (unasked.returncode, "standard input is not a terminal: give --plan 4f2a" in unasked.stderr) == (3, True)
    other = ftj("approve", "bot", "--plan", "beef")
    assert (other.returncode, other.stderr.strip()) == (
        3,
        "the plan of bot is 4f2a now, not beef: check it, then approve that one",
    )
    assert "approvedPlan" not in ftj.job()["spec"]["budget"]
    done = ftj("approve", "bot", "--plan", "4f2a")
    assert done.returncode == 0, done.stderr
    assert "Cost   86.80" in done.stdout
    assert ftj.job()["spec"]["budget"] == {"approval": "Manual", "maxCost": 100, "approvedPlan": "4f2a"}
    assert "the operator has not reconciled the last change" in ftj("approve", "bot", "--yes").stderr
    assert ftj("run", str(ftj.file), "--no-follow").returncode == 0
    assert ftj.job()["spec"]["budget"]["approvedPlan"] == "4f2a"
    ftj.say(**COMPLETED)
    assert ftj.ends(process)[0] == 0


def test_a_budget_that_is_spent_is_exit_code_5(ftj: Ftj) -> None:
    process = ftj.start("run", ftj.manifest())
    ftj.say(
        phase="Suspended",
        reason="BudgetExhausted",
        message="spec.budget.maxDuration: 2h are used up; raise it",
        lastCheckpoint={"step": 7},
    )
    code, lines, _ = ftj.ends(process)
    assert (code, lines[-1]) == (5, "bot stopped with a checkpoint: spec.budget.maxDuration: 2h are used up; raise it.")


EVENT = {
    "apiVersion": "events.k8s.io/v1",
    "kind": "Event",
    "metadata": {"generateName": "bot-"},
    "type": "Warning",
    "reason": "Evicted",
    "action": "Resume",
    "note": "Pod bot-0 was disrupted. Stage train resumes from step 40",
    "eventTime": "2026-01-01T00:00:00.000000Z",
    "reportingController": "tests",
    "reportingInstance": "tests",
}


def test_describe_shows_a_job_its_events_and_its_resolved_spec(ftj: Ftj) -> None:
    assert ftj("run", ftj.manifest(), "--no-follow").returncode == 0
    assert "is not resolved yet" in ftj("describe", "bot", "--effective").stderr
    effective = {"method": {"type": "lora"}, "training": {"learningRate": 0.0002}}
    attempt = {"stage": "train", "number": 1, "job": "x", "outcome": "Evicted", "reason": "Evicted", "stepsLost": 7}
    ftj.say(
        phase="Queued", reason="Resuming", attempts=[attempt], state=json.dumps({"effective": effective, "later": 1})
    )
    regarding = {"kind": "FineTuneJob", "namespace": ftj.namespace, "name": "bot", "uid": ftj.job()["metadata"]["uid"]}
    path = f"/apis/events.k8s.io/v1/namespaces/{ftj.namespace}/events"
    ftj.api.post(path, {**EVENT, "regarding": regarding})
    ftj.api.post(path, {**EVENT, "regarding": {**regarding, "uid": "another"}, "note": "of an earlier job"})
    shown = ftj("describe", "bot")
    lines = [line.split() for line in shown.stdout.splitlines()]
    assert (shown.returncode, shown.stderr) == (0, "")
    assert ["train", "1", "Evicted", "Evicted", "7"] in lines
    assert any(line[1:3] == ["Warning", "Evicted"] and line[-2:] == ["step", "40"] for line in lines)
    assert "of an earlier job" not in shown.stdout
    assert yaml.safe_load(ftj("describe", "bot", "--effective").stdout) == effective
    assert json.loads(ftj("describe", "bot", "--effective", "-o", "json").stdout) == effective
    whole = yaml.safe_load(ftj("describe", "bot", "-o", "yaml").stdout)
    assert (whole["status"]["phase"], whole["metadata"].get("managedFields")) == ("Queued", None)
    assert ftj("describe", "nope").returncode == 3


class Wire:
    """A TCP relay to the API server that can be cut."""

    def __init__(self, server: str) -> None:
        host, _, port = server.removeprefix("https://").partition(":")
        self.target = (host, int(port))
        self.connections: list[socket.socket] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.is_cut = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self.listener.accept()
            except OSError:
                return
            if self.is_cut:
                here.close()
                continue
            there = socket.create_connection(self.target)
            self.connections += [here, there]
            for source, sink in ((here, there), (there, here)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        self.is_cut = True
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self.is_cut = False


def test_an_api_server_that_is_away_for_a_while(ftj: Ftj, tmp_path: Path) -> None:
    """What happened meanwhile is told when it answers again."""
    wire = Wire(ftj.api.server)
    kubeconfig = yaml.safe_load(ftj.api.kubeconfig.read_text())
    kubeconfig["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{wire.port}"
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
    ftj.environment["KUBECONFIG"] = str(tmp_path / "kubeconfig")
    process = ftj.start("run", ftj.manifest())
    ftj.say(phase="Training", reason="Training", message="Training on 1 node")
    assert process.stdout
    while "Training on 1 node" not in process.stdout.readline():
        pass
    wire.cut()
    ftj.say(**COMPLETED)
    line = process.stdout.readline()
    assert "cannot be reached" in line
    assert "retrying" in line
    wire.mend()
    code, lines, errors = ftj.ends(process)
    wire.listener.close()
    assert (code, errors) == (0, "")
    assert lines[0] == "The cluster answers again."
    assert lines[-1] == "bot completed."


def test_what_the_api_server_refuses_is_one_sentence(ftj: Ftj) -> None:
    assert ftj("run", ftj.manifest(), "--no-follow").returncode == 0
    frozen = ftj("run", ftj.manifest(method={"type": "full"}), "--no-follow")
    assert (frozen.returncode, frozen.stdout) == (3, "")
    assert frozen.stderr.strip() == (
        f"FineTuneJob {ftj.namespace}/bot was refused: spec.method cannot change once the job exists: copy the manifest "
        "to a new name, or delete the job first"
    )
    body = {**JOB, "spec": {**JOB["spec"], "retry": {"infra": 1}}}  # type: ignore[dict-item]
    path = f"{JOBS.format(ftj.namespace)}/bot"
    ftj.api.call("PATCH", path, body, "application/apply-patch+yaml", fieldManager="argocd", force="true")
    conflict = ftj("run", ftj.manifest(retry={"infra": 2}), "--no-follow")
    assert conflict.returncode == 3
    assert "argocd" in conflict.stderr
    assert ".spec.retry.infra" in conflict.stderr
    assert "--force-conflicts" in conflict.stderr
    assert ftj("run", ftj.manifest(retry={"infra": 2}), "--no-follow", "--force-conflicts").returncode == 0
    assert ftj.job()["spec"]["retry"]["infra"] == 2


def test_names_that_are_not_there(ftj: Ftj) -> None:
    for command in (["watch", "nope"], ["logs", "nope"], ["pull", "nope", "dir"]):
        result = ftj(*command)
        assert (result.returncode, result.stderr.strip()) == (3, f"there is no FineTuneJob {ftj.namespace}/nope")
    assert ftj("run", ftj.manifest(), "--no-follow").returncode == 0
    assert ftj("logs", "bot").stderr.strip() == "no pod of bot with a log is there: the job is new"
    assert ftj("pull", "bot", "dir").stderr.strip() == "bot has published nothing: it is new"


def test_rights_that_are_missing_are_exit_code_1(ftj: Ftj, tmp_path: Path) -> None:
    account = f"/api/v1/namespaces/{ftj.namespace}/serviceaccounts/default"
    ftj.eventually("the service account", lambda: ftj.api.find(account))
    token = ftj.api.post(
        f"{account}/token", {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    )
    kubeconfig = yaml.safe_load(ftj.api.kubeconfig.read_text())
    kubeconfig["users"][0]["user"] = {"token": token["status"]["token"]}
    ftj.environment["KUBECONFIG"] = str(tmp_path / "kubeconfig")
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
    refused = ftj("run", ftj.manifest())
    assert refused.returncode == 1
    assert refused.stderr.startswith("not allowed: finetunejobs.finetune.dev")
    kubeconfig["users"][0]["user"] = {"token": "wrong"}
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
    unknown = ftj("watch", "bot")
    assert (unknown.returncode, unknown.stderr.strip()) == (
        1,
        "the cluster does not know you: your credentials are missing or expired",
    )


EXAMPLES = sorted(p for p in (ROOT / "examples").rglob("*.yaml") if "kind: FineTuneJob" in p.read_text())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_api_server_takes_every_example(ftj: Ftj, path: Path) -> None:
    body = yaml.safe_load(path.read_text().replace("1e-4", "1.0e-4").replace("2e-5", "2.0e-5"))
    name = body["metadata"]["name"]
    query = {"fieldManager": "tests", "fieldValidation": "Strict", "dryRun": "All"}
    taken = ftj.api.call("PATCH", f"{JOBS.format(ftj.namespace)}/{name}", body, "application/apply-patch+yaml", **query)
    assert taken["status"]["observedGeneration"] == -1
