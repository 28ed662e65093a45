"""The local cluster itself, through its command line: sizes api and control, as a user without root sees them."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from localcluster import preflight, spec
from localcluster.api import Api, wait_until
from localcluster.cache import made_once
from localcluster.errors import NotReadyToStart
from localcluster.processes import Registry, boot_id

REPOSITORY = Path(__file__).resolve().parents[2]
BUILD_TIMEOUT_S = 1800


def localcluster(state: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run one command with a state folder of its own, so that no test meets a person's clusters."""
    environment = {key: value for key, value in os.environ.items() if key not in ("CLUSTER", "KUBECONFIG")}
    return subprocess.run(
        [sys.executable, "-m", "localcluster", *arguments],
        cwd=REPOSITORY,
        env={**environment, "XDG_STATE_HOME": str(state), **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=BUILD_TIMEOUT_S,
    )


def status(state: Path, name: str) -> dict[str, Any]:
    """What ``status -o json`` says."""
    found: dict[str, Any] = json.loads(localcluster(state, "status", "--name", name, "-o", "json").stdout)
    return found


def pids(state: Path, name: str) -> dict[str, int]:
    """The process ids of a cluster."""
    return {part["name"]: part["pid"] for part in status(state, name)["components"]}


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two clusters side by side: ``one`` of size control and ``two`` of size api."""
    folder = tmp_path_factory.mktemp("s")
    built = localcluster(folder, "build", "--size", "control")
    assert built.returncode == 0, built.stderr
    try:
        with ThreadPoolExecutor() as both:
            ups = [
                both.submit(localcluster, folder, "up", "--size", size, "--name", name)
                for name, size in (("one", "control"), ("two", "api"))
            ]
        for started in ups:
            assert started.result().returncode == 0, started.result().stderr
        yield folder
    finally:
        for name in ("one", "two"):
            localcluster(folder, "down", "--name", name)


@pytest.fixture
def control(state: Path, monkeypatch: pytest.MonkeyPatch) -> Api:
    """The API of the cluster ``one``."""
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    cluster = spec.load("one")
    assert cluster is not None
    return Api(cluster.server, cluster.pki)


def test_two_run_side_by_side(state: Path) -> None:
    one, two = status(state, "one"), status(state, "two")
    assert one["ready"]
    assert two["ready"]
    assert [part["name"] for part in two["components"]] == ["etcd", "kube-apiserver"]
    assert not set(one["ports"].values()) & set(two["ports"].values())
    assert Path(localcluster(state, "kubeconfig", "--name", "one").stdout.strip()).is_file()
    assert localcluster(state, "kubeconfig").returncode == 2, "with two clusters a name is needed"


def test_the_job_controller_makes_pods_and_nodes_can_be_made_up(control: Api) -> None:
    pod = {"restartPolicy": "Never", "containers": [{"name": "c", "image": "none"}]}
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "made"},
        "spec": {"completions": 2, "parallelism": 2, "completionMode": "Indexed", "template": {"spec": pod}},
    }
    control.apply("/apis/batch/v1/namespaces/default/jobs/made", job)
    control.apply("/api/v1/nodes/made", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "made"}})
    ready = [{"type": "Ready", "status": "True", "reason": "Made"}]
    amounts = {"cpu": "8", "memory": "64Gi", "pods": "10", "nvidia.com/gpu": "4"}
    change = {"status": {"capacity": amounts, "allocatable": amounts, "conditions": ready}}
    control.merge("/api/v1/nodes/made/status", change)

    def placed() -> bool:
        found = control.get("/api/v1/namespaces/default/pods?labelSelector=job-name=made") or {}
        return [item["spec"].get("nodeName") for item in found["items"]] == ["made", "made"]

    assert wait_until(placed, 60)


def test_kwok_pods_end_as_their_annotations_say(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("k")
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    try:
        started = localcluster(folder, "up", "--size", "control", "--name", "k", "--kwok", "2")
        assert started.returncode == 0, started.stderr
        cluster = spec.load("k")
        assert cluster is not None
        api = Api(cluster.server, cluster.pki)
        pods = "/api/v1/namespaces/default/pods"
        message = json.dumps({"text": "a \"quoted\" one: it's 'x'"})
        for name, annotations in (
            ("ends", {"run-for": "0.5s", "exit-code": "3", "message": message}),
            ("stays", {"stop-exit-code": "5", "stop-message": "saved"}),
        ):
            pod = {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": name,
                    "annotations": {f"localcluster/{key}": value for key, value in annotations.items()},
                    "finalizers": ["example.com/kept"],
                },
                "spec": {
                    "restartPolicy": "Never",
                    "containers": [{"name": "c", "image": "none", "resources": {"limits": {"nvidia.com/gpu": "8"}}}],
                },
            }
            api.apply(f"{pods}/{name}", pod)

        def phase(name: str) -> str:
            return str((api.get(f"{pods}/{name}") or {})["status"].get("phase"))

        def ended(name: str) -> dict[str, Any]:
            assert wait_until(lambda: phase(name) == "Failed", 30)
            status = (api.get(f"{pods}/{name}") or {})["status"]
            terminated: dict[str, Any] = status["containerStatuses"][0]["state"]["terminated"]
            return terminated

        first = ended("ends")
        assert (first["exitCode"], first["message"]) == (3, message)
        assert wait_until(lambda: phase("stays") == "Running", 30)
        api.delete(f"{pods}/stays")
        last = ended("stays")
        assert (last["exitCode"], last["message"]) == (5, "saved")
    finally:
        localcluster(folder, "down", "--name", "k")


def test_up_again_changes_nothing(state: Path) -> None:
    before = pids(state, "one")
    again = localcluster(state, "up", "--size", "control", "--name", "one")
    assert again.returncode == 0
    assert "already up" in again.stderr
    assert pids(state, "one") == before


def test_up_restarts_what_was_killed_and_keeps_the_data(state: Path, control: Api) -> None:
    control.apply("/api/v1/namespaces/kept", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kept"}})
    before = pids(state, "one")
    for component in ("kube-apiserver", "etcd", "kube-scheduler"):
        os.kill(before[component], signal.SIGKILL)
    assert not status(state, "one")["ready"]
    repaired = localcluster(state, "up", "--size", "control", "--name", "one")
    assert repaired.returncode == 0
    assert "kube-apiserver is dead" in repaired.stderr
    after = pids(state, "one")
    assert after["kube-apiserver"] != before["kube-apiserver"]
    assert after["kube-controller-manager"] == before["kube-controller-manager"]
    assert control.get("/api/v1/namespaces/kept") is not None


def test_what_stands_in_the_way_is_said_before_anything_starts(state: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        busy = localcluster(state, "up", "--size", "api", "--name", "busy", "--port", str(port))
    assert busy.returncode == 2
    assert f"Port {port} on loopback is in use" in busy.stderr
    other_size = localcluster(state, "up", "--size", "api", "--name", "one")
    assert other_size.returncode == 2
    assert "exists with size control" in other_size.stderr
    bad_name = localcluster(state, "up", "--size", "api", "--name", "../x")
    assert bad_name.returncode == 2
    assert not (state / "finetune-operator/clusters/busy").exists()


def test_a_component_that_dies_shows_its_last_words(state: Path) -> None:
    try:
        failed = localcluster(state, "up", "--size", "api", "--name", "bad", "--flag", "kube-apiserver=--no-such-flag")
        assert failed.returncode == 3
        assert "unknown flag: --no-such-flag" in failed.stderr
        assert "kube-apiserver.log" in failed.stderr
    finally:
        assert localcluster(state, "down", "--name", "bad").returncode == 0


def test_ones_own_cluster_is_left_alone(state: Path) -> None:
    for verb in ("up", "down"):
        done = localcluster(state, verb, CLUSTER="current")
        assert done.returncode == 0
        assert "your own cluster" in done.stderr
    assert localcluster(state, "kubeconfig", CLUSTER="current", KUBECONFIG="/a:/b").stdout == "/a\n"


def test_down_leaves_nothing(state: Path) -> None:
    before = pids(state, "two")
    assert all(runs(pid) for pid in before.values())
    assert localcluster(state, "down", "--name", "two").returncode == 0
    assert not any(runs(pid) for pid in before.values())
    assert not (state / "finetune-operator/clusters/two").exists()
    assert localcluster(state, "down", "--name", "two").returncode == 0, "down again is no error"
    assert status(state, "one")["ready"], "the other one is not concerned"


def test_a_process_that_took_over_an_id_is_never_ended(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "pids", tmp_path / "logs")
    process = registry.start("sleeper", ["sleep", "60"], Path("/bin/sleep"), dict(os.environ))
    try:
        assert registry.alive("sleeper")
        for stale in ({"started": process.started - 1}, {"boot": "another"}):
            record = json.dumps({**dataclasses.asdict(process), **stale})
            (tmp_path / "pids/sleeper.json").write_text(record)
            assert not registry.alive("sleeper")
            registry.stop(["sleeper"])
            assert runs(process.pid)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        os.waitpid(process.pid, 0)
    assert process.boot == boot_id()


def test_a_killed_build_is_not_taken_for_whole(tmp_path: Path) -> None:
    def killed(target: Path) -> None:
        (target / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made_once(tmp_path / "program", killed)
    assert not (tmp_path / "program").exists()
    made_once(tmp_path / "program", lambda target: (target / "whole").touch())
    assert [file.name for file in (tmp_path / "program").iterdir()] == ["whole"]


def test_size_node_says_that_it_needs_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NotReadyToStart, match="needs root"):
        preflight.check("node", "node", None)
