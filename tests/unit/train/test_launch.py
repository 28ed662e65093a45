"""PID 1: where a pod stands in its gang, and what it does with a config that it cannot use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from finetune_api.contract import ENV_MASTER_ADDR, ENV_NODE_RANK, JobRef, RunConfig, TerminationMessage
from finetune_api.effective import resolve
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer import environment
from finetune_trainer.errors import BadInput


def run_config(stage: str = "train", **compute: Any) -> RunConfig:
    spec = {
        "model": {"uri": "pvc://models/base"},
        "method": {"type": "lora"},
        "data": {"train": [{"uri": "pvc://data/rows.jsonl"}]},
        "compute": {"device": "cpu", **compute},
        "workspace": {"uri": "pvc://scratch"},
        "output": {"uri": "pvc://out/x"},
    }
    job = JobRef(name="j", namespace="n", uid="u", run="abcde")
    return RunConfig(job=job, stage=stage, attempt=1, spec=resolve(FineTuneJobSpec.model_validate(spec), decided={}))  # type: ignore[arg-type]


def test_ranks_follow_from_the_completion_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(ENV_NODE_RANK, "1")
    monkeypatch.setenv(ENV_MASTER_ADDR, "job-0.job")
    config = run_config(nodes=2, processesPerNode=3)
    place = environment.place(config)
    assert [place.rank(local) for local in range(3)] == [3, 4, 5]
    own = environment.worker_environment(config, place, 2, tmp_path)
    expected = {"RANK": "5", "LOCAL_RANK": "2", "WORLD_SIZE": "6", "LOCAL_SIZE": "3", "MASTER_ADDR": "job-0.job"}
    assert {name: own[name] for name in expected} == expected
    assert own["MASTER_PORT"] == "29500"
    assert own["HF_HUB_OFFLINE"] == "1"
    assert "GLOO_SOCKET_IFNAME" not in own


@pytest.mark.parametrize(
    ("quota", "asked", "spins"),
    [
        (None, {}, "300"),
        (2.0, {}, None),
        (None, {"OMP_WAIT_POLICY": "active"}, None),
        (None, {"GOMP_SPINCOUNT": "7"}, "7"),
    ],
)
def test_threads_on_cores_that_others_may_use_wait_without_spinning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: float | None, asked: dict[str, str], spins: str | None
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(environment, "_quota", lambda: quota)
    config = run_config()
    own = environment.worker_environment(config, environment.place(config), 0, tmp_path)
    assert own.get("GOMP_SPINCOUNT") == spins


@pytest.mark.parametrize(
    ("device", "library", "limit", "words"),
    [
        ("other", "libc.so.6", 8192, None),
        ("uverbs0", "libnothing.so.1", -1, "libnothing.so.1: cannot open shared object file"),
        ("uverbs0", "libc.so.6", -1, None),
        ("uverbs0", "libc.so.6", 2**40, None),
        ("uverbs0", "libc.so.6", 8 * 2**20, "it may lock 8192 KiB of memory; set LimitMEMLOCK=infinity"),
    ],
)
def test_rdma_devices_that_nccl_cannot_use_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str, library: str, limit: int, words: str | None
) -> None:
    (tmp_path / device).touch()
    monkeypatch.setattr(environment.resource, "getrlimit", lambda kind: (limit, limit))
    monkeypatch.setattr(environment, "_may_lock", lambda: False)
    problem = environment.rdma_problem(tmp_path, library)
    assert (problem is None) == (words is None)
    assert words is None or words in (problem or "")
    monkeypatch.setattr(environment, "_may_lock", lambda: True)
    assert environment.rdma_problem(tmp_path, "libc.so.6") is None


@pytest.mark.parametrize("missing", [ENV_NODE_RANK, ENV_MASTER_ADDR])
def test_several_pods_never_fall_back_to_localhost(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    for name in (ENV_NODE_RANK, ENV_MASTER_ADDR):
        monkeypatch.setenv(name, "0")
    monkeypatch.delenv(missing)
    with pytest.raises(BadInput, match=missing):
        environment.place(run_config(nodes=2))


def test_an_index_outside_the_gang_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV_NODE_RANK, "2")
    monkeypatch.setenv(ENV_MASTER_ADDR, "x")
    with pytest.raises(BadInput, match=r"is 2, but spec\.compute.nodes is 2"):
        environment.place(run_config(nodes=2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("{", "Invalid JSON"),
        (json.dumps(run_config("prepare").wire()), "is a run config of stage prepare, not train"),
        (json.dumps(run_config().wire() | {"attempt": 0}), "attempt: Input should be greater"),
    ],
)
def test_a_config_that_cannot_be_used_is_one_sentence(tmp_path: Path, content: str | None, message: str) -> None:
    path, termination = tmp_path / "run.json", tmp_path / "termination"
    if content is not None:
        path.write_text(content)
    done = subprocess.run(
        [sys.executable, "-m", "finetune_trainer", "train", "--config", str(path)],
        env=os.environ | {"FINETUNE_TERMINATION_LOG": str(termination), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3, done.stdout + done.stderr
    said = TerminationMessage.decode(termination.read_text())
    assert said is not None
    assert (said.exit_code, said.cause.code) == (3, "InvalidSpec")
    assert message in said.cause.message
    assert said.cause.message in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_stop_that_comes_while_it_is_imported_is_kept(tmp_path: Path) -> None:
    """PID 1 would lose it: the kernel throws away a signal that it neither handles nor blocks."""
    (tmp_path / "sitecustomize.py").write_text(
        """
import os, signal, sys
class Hook:
    def find_spec(self, name, *_):
        if name == "pydantic":
            print("told to stop", flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Hook())
"""
    )
    done = subprocess.run(
        [sys.executable, "-m", "finetune_trainer", "train", "--config", str(tmp_path / "none.json")],
        env=os.environ
        | {
            "FINETUNE_TERMINATION_LOG": str(tmp_path / "termination"),
            "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "told to stop" in done.stdout
    assert done.returncode == 3, "it went on to where a stop is acted on"
