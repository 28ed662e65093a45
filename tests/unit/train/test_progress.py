"""The endpoint that the operator polls."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from finetune_api.contract import JobRef, Progress, RunConfig
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.progress import ProgressServer, ProgressWriter


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ProgressServer]:
    spec = FineTuneJobSpec.model_validate(
        {
            "model": {"uri": "pvc://models/base"},
            "method": {"type": "lora"},
            "data": {"train": [{"uri": "pvc://data/rows.jsonl"}]},
            "workspace": {"uri": "pvc://scratch"},
            "output": {"uri": "pvc://out/x"},
        }
    )
    job = JobRef(name='odd"name', namespace="team", uid="u", run="abcde")
    server = ProgressServer(tmp_path / "progress.json", RunConfig(job=job, stage="train", attempt=2, spec=spec), 0)
    yield server
    server.close()


def get(server: ProgressServer, path: str) -> str:
    return urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=10).read().decode()


def test_state_is_served_as_json_and_as_metrics(server: ProgressServer, tmp_path: Path) -> None:
    writer = ProgressWriter(tmp_path / "progress.json", Progress(stage="train", attempt=2))
    writer.update(step=3, total_steps=12, percent=25.0, loss=1.5, force=True)
    assert Progress.model_validate_json(get(server, "/progress")).step == 3
    metrics = get(server, "/metrics")
    labels = r'{job_name="odd\"name",job_namespace="team",stage="train",attempt="2"}'
    assert f"finetune_progress_ratio{labels} 0.25\n" in metrics
    assert f"finetune_loss{labels} 1.5\n" in metrics
    assert "finetune_eval_loss" not in metrics
    for line in metrics.splitlines():
        assert line.startswith(("# HELP finetune_", "# TYPE finetune_", "finetune_"))


def test_before_there_is_anything_it_says_so(server: ProgressServer, tmp_path: Path) -> None:
    (tmp_path / "progress.json").write_text('{"stage": "tr')
    for path in ("/progress", "/metrics", "/"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(server, path)


def test_writing_is_limited_but_never_loses_the_last_word(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    writer = ProgressWriter(path, Progress(stage="train"))
    for step in range(100):
        writer.update(step=step)
    assert json.loads(path.read_text())["step"] == 0
    writer.update(force=True)
    assert json.loads(path.read_text())["step"] == 99
    ProgressWriter(None, Progress(stage="train")).update(step=1, force=True)
