"""Manifests and statuses to show."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from finetune_api.finetunejob import FineTuneJob
from finetune_cli import survey, view

BODY: dict[str, Any] = {
    "apiVersion": "finetune.dev/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "bot", "namespace": "team-a", "uid": "u-1", "generation": 1},
    "spec": {
        "model": {"uri": "pvc://models/base"},
        "method": {"type": "lora"},
        "data": {"train": [{"uri": "pvc://datasets/bot.jsonl"}]},
        "compute": {"nodes": 2, "device": "cpu"},
        "workspace": {"uri": "pvc://scratch"},
        "output": {"uri": "pvc://models/bot"},
    },
}

JOB = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: bot}
spec:
  model: {uri: pvc://models/base}
  method: {type: lora}
  data:
    train: [{uri: pvc://datasets/bot.jsonl}]
  workspace: {uri: pvc://scratch}
  output: {uri: pvc://models/bot}
"""
"""The same as somebody writes it, to be changed at will."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that ftj is called in, with a claim that holds data."""
    folder = tmp_path / "here"
    (folder / "claims" / "datasets").mkdir(parents=True)
    (folder / "claims" / "datasets" / "bot.jsonl").touch()
    monkeypatch.chdir(folder)
    return folder


Ended = Callable[[Callable[[], NoReturn]], tuple[int, str]]


@pytest.fixture
def ended(capsys: pytest.CaptureFixture[str]) -> Ended:
    """ended(call): exit code and standard output of a command that ends the process."""

    def run(call: Callable[[], NoReturn]) -> tuple[int, str]:
        with pytest.raises(SystemExit) as caught:
            call()
        assert isinstance(caught.value.code, int)
        return caught.value.code, capsys.readouterr().out

    return run


@pytest.fixture
def body() -> dict[str, Any]:
    """A FineTuneJob as the API server gives it, to be changed at will."""
    return copy.deepcopy(BODY)


Job = Callable[..., FineTuneJob]


@pytest.fixture
def job(body: dict[str, Any]) -> Job:
    """A job with these fields of status."""

    def make(**status: Any) -> FineTuneJob:
        return view.parse({**body, "status": {"observedGeneration": 1, **status}})

    return make


class Surveyor:
    """Stands for `python -m finetune_trainer survey`, as a process: gives the answer that a test lays down, keeps the question."""

    PROGRAM = """
import json, os, sys
from pathlib import Path
here = Path(__file__).parent
asked = sys.stdin.read()
with (here / "asked").open("a") as file:
    file.write(asked + "\\n")
for step in (50, 100):
    print(json.dumps({"stage": "prepare", "step": step, "percent": step}), file=sys.stderr, flush=True)
if (here / "crash").exists():
    sys.exit("MemoryError: \\x1b[31mno room")
answers = json.loads((here / "answers").read_text())
print(json.dumps(answers.get(Path(json.loads(asked).get("data", {}).get("train", [{}])[0].get("uri", "")).name) or answers[""]))
"""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "finetune_trainer"
        self.folder.mkdir(parents=True)
        (self.folder / "__init__.py").touch()
        (self.folder / "__main__.py").write_text(self.PROGRAM)

    def answers(self, usual: dict[str, Any] | None = None, **by_name: dict[str, Any]) -> None:
        """What it says of everything, and of files (without their suffix) when they are asked for alone."""
        names = {f"{name}.jsonl": answer for name, answer in by_name.items()}
        (self.folder / "answers").write_text(json.dumps({"": usual or {}, **names}))

    def crashes(self) -> None:
        (self.folder / "crash").touch()

    @property
    def asked(self) -> list[Any]:
        file = self.folder / "asked"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def surveyor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Surveyor:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "stand-in"))
    monkeypatch.setattr(survey, "MODULES", ())
    return Surveyor(tmp_path / "stand-in")
