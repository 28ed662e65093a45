"""What publish leaves: whole, checkable, and never in place of somebody else's files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from finetune_api.contract import Progress
from finetune_api.location import ClaimLocation
from finetune_trainer import sealed
from finetune_trainer.errors import BadInput, StageError
from finetune_trainer.progress import ProgressWriter
from finetune_trainer.publish import output, publish, run
from finetune_trainer.stage import StageContext
from finetune_trainer.stop import StopFlag

from .conftest import history


def go(config):
    return publish(config, lambda percent: None)


def test_the_output_is_whole_and_its_checksums_hold(make_run):
    config = make_run()
    artifacts = go(config)
    folder = output.folder_of(config)
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md", "report.html", "evaluation.json",
        "effective.json", "history.jsonl", "SHA256SUMS", "finetune.json",
    }  # fmt: skip
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    assert artifacts.files == len(names)
    assert artifacts.digest == sealed.sha256(folder / "SHA256SUMS")
    assert artifacts.report == "pvc://models/support-bot/report.html"
    manifest = json.loads((folder / "finetune.json").read_text())
    assert manifest["job"] == {"namespace": "team-a", "name": "support-bot", "uid": "uid-1", "run": "abcde"}
    effective = json.loads((folder / "effective.json").read_text())
    assert effective["training"]["epochs"] == 3
    assert effective["resolved"]["steps"] == 300
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "nothing is left beside it"


def test_a_second_run_finds_its_own_work(make_run):
    config = make_run()
    first = go(config)
    stamp = (output.folder_of(config) / "report.html").stat().st_mtime_ns
    assert go(config) == first
    assert (output.folder_of(config) / "report.html").stat().st_mtime_ns == stamp


def test_the_stage_reports_artifacts_and_evaluation_every_time(make_run, monkeypatch):
    """Train's termination message may have been lost."""
    monkeypatch.setitem(sys.modules, "torch", sys.modules.get("torch"))  # the stage forbids it in its own process
    config, reported = make_run(), []
    for _ in range(2):
        context = StageContext(config, ProgressWriter(None, Progress(stage="publish")), StopFlag(), Path())
        run(context)
        reported.append(context.known)
    assert reported[0] == reported[1]
    assert reported[1]["artifacts"].files == 10
    assert {row.metric: row.tuned for row in reported[1]["evaluation"].metrics}["loss"] == 0.87


def test_a_damaged_output_of_ours_is_written_again(make_run):
    config = make_run()
    go(config)
    (output.folder_of(config) / "adapter_model.safetensors").write_text("other")
    go(config)
    assert (output.folder_of(config) / "adapter_model.safetensors").read_text() == "weights"


def test_a_recreated_job_replaces_its_own_output(make_run):
    go(make_run())
    again = make_run(job={"uid": "uid-2"}, files={"adapter_model.safetensors": "newer"})
    go(again)
    folder = output.folder_of(again)
    assert (folder / "adapter_model.safetensors").read_text() == "newer"
    assert not (folder / "tokenizer.json").exists(), "nothing of the old one stays"


@pytest.mark.parametrize("other", [{"name": "other-job"}, {"namespace": "team-b"}])
def test_another_job_s_output_is_not_touched(make_run, other):
    first = make_run()
    go(first)
    with pytest.raises(BadInput, match="which this job did not write") as caught:
        go(make_run(job=other))
    assert caught.value.cause.code == "OutputTaken"
    assert json.loads((output.folder_of(first) / "finetune.json").read_text())["job"]["name"] == "support-bot"


def test_a_stranger_s_folder_and_file_are_not_touched(make_run):
    config = make_run()
    folder = output.folder_of(config)
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(BadInput, match=r"already holds thesis\.txt"):
        go(config)
    assert (folder / "thesis.txt").read_text() == "mine"
    shutil.rmtree(folder)
    folder.write_text("a file")
    with pytest.raises(BadInput, match="is a file, not a folder"):
        go(config)


def test_an_empty_folder_is_free(make_run):
    config = make_run()
    (output.folder_of(config) / "lost+found").mkdir(parents=True)
    go(config)


class TestTheRootOfAClaim:
    """A mount cannot be renamed: files are exchanged in it, and a crash on the way never looks like somebody else's."""

    @pytest.fixture
    def config(self, make_run):
        config = make_run(spec={"output": {"uri": "pvc://results"}})
        (Path(config.claims_root) / "results").mkdir(exist_ok=True)
        return config

    def test_publishes_and_replaces(self, config, make_run):
        root = output.folder_of(config)
        inode = root.stat().st_ino
        go(config)
        (root / "lost+found").mkdir()
        again = make_run(
            spec={"output": {"uri": "pvc://results"}},
            job={"uid": "uid-2"},
            files={"adapter_model.safetensors": "newer"},
        )
        go(again)
        assert root.stat().st_ino == inode, "the mount point itself stayed"
        assert (root / "adapter_model.safetensors").read_text() == "newer"
        assert not (root / "tokenizer.json").exists()
        assert (root / "lost+found").is_dir()
        assert not [path.name for path in root.iterdir() if path.name.startswith(".finetune")]
        subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=root, check=True)

    @pytest.mark.parametrize("renames", range(0, 11))
    def test_a_crash_between_any_two_renames_is_repaired(self, config, monkeypatch, renames):
        go(config)
        root = output.folder_of(config)
        (root / "adapter_model.safetensors").write_text("damaged, so that the next run publishes again")
        left, rename = renames, Path.rename

        def dying(self, target):
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt  # as close to kill -9 as one process gets: no handler of ours knows it
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", dying)
        try:
            go(config)
            died = False
        except KeyboardInterrupt:
            died = True
        monkeypatch.undo()
        if died:
            assert not (root / "finetune.json").exists() or (root / "adapter_model.safetensors").exists()
        go(config)
        subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=root, check=True)
        assert (root / "adapter_model.safetensors").read_text() == "weights"


def test_a_damaged_trained_folder_is_not_published(make_run):
    config = make_run()
    weights = config.layout.trained / "model" / "adapter_model.safetensors"
    weights.write_text("torn")
    with pytest.raises(StageError, match="nothing whole to publish"):
        go(config)
    assert not output.folder_of(config).exists()


def test_a_claim_that_is_not_mounted_is_named(make_run):
    config = make_run()
    config.spec.output = ClaimLocation(uri="pvc://elsewhere/x")
    with pytest.raises(BadInput, match=r"spec\.output\.uri: pvc://elsewhere/x"):
        go(config)


def test_a_full_model_ends_at_the_token_it_was_taught(make_run):
    config = make_run(
        spec={"method": {"type": "full"}},
        files={"model.safetensors": "w", "config.json": "{}", "generation_config.json": '{"eos_token_id": 2}'},
    )
    go(config)
    assert json.loads((output.folder_of(config) / "generation_config.json").read_text())["eos_token_id"] == [2, 4, 7]


def test_the_newest_attempt_wins_for_a_step_that_was_taken_twice(make_run):
    older, newer = history(1, 170, start=9.0), history(151, 300)
    config = make_run(histories={1: older, 2: newer, 10: [{"step": 300, "loss": 0.5, "time": 2e9}]})
    (config.layout.attempt(2) / "history.jsonl").open("a").write('{"step": 299, "lo')  # cut by a crash
    go(config)
    lines = [json.loads(line) for line in (output.folder_of(config) / "history.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert losses[150] == pytest.approx(next(line["loss"] for line in older if line["step"] == 150 and "loss" in line))
    assert losses[160] == pytest.approx(next(line["loss"] for line in newer if line["step"] == 160 and "loss" in line))
    assert losses[300] == 0.5
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
