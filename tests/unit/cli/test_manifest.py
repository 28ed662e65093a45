"""A manifest is read as the API server reads it, and whatever is wrong is said with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetune_cli import manifest
from finetune_cli.errors import CliError, Exit

GOOD = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata:
  name: bot
spec:
  model: {uri: pvc://models/base}
  method: {type: lora}
  data:
    train:
      - uri: pvc://datasets/a.jsonl
  training:
    learningRate: 2e-4
  workspace: {uri: pvc://scratch}
  output: {uri: pvc://models/bot}
"""


def read(tmp_path: Path, text: str) -> manifest.Manifest:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return manifest.read(str(path))


def complaints(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(CliError) as caught:
        manifest.refuse_file_locations(read(tmp_path, text))
    assert caught.value.exit_code is Exit.FAILED
    return [line.removeprefix(f"{tmp_path}/") for line in caught.value.lines]


@pytest.mark.parametrize("rate", ["2e-4", "0.0002", "2E-4", "2.0e-4"])
def test_numbers_are_those_of_yaml_1_2(tmp_path: Path, rate: str) -> None:
    given = read(tmp_path, GOOD.replace("2e-4", rate))
    assert given.job.spec.training.learning_rate == 0.0002
    assert given.body["spec"]["training"]["learningRate"] == 0.0002


def test_what_is_sent_is_what_was_written(tmp_path: Path) -> None:
    """No default is added and nothing is dropped, but the status that `kubectl get -o yaml` prints."""
    given = read(tmp_path, "---\n" + GOOD + "status: {phase: Completed}\n---\n")
    assert given.body["spec"]["data"] == {"train": [{"uri": "pvc://datasets/a.jsonl"}]}
    assert given.body["spec"].keys() == {"model", "method", "data", "training", "workspace", "output"}
    assert "status" not in given.body


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("learningRate: 2e-4", "learningRat: 2e-4", "job.yaml:12: spec.training.learningRat: unknown field; did you mean learningRate?"),
        ("type: lora", "type: lorra", "job.yaml:7: spec.method.type: 'lorra' is not one of 'lora', 'qlora', 'dora', 'prefix', 'prompt' or 'full'"),
        ("learningRate: 2e-4", "learningRate: -1", "job.yaml:12: spec.training.learningRate: input should be greater than 0, not -1"),
        ("learningRate: 2e-4", "learningRate: '2e-4'", "job.yaml:12: spec.training.learningRate: input should be a valid number, not '2e-4'"),
        ("learningRate: 2e-4", "epochs: no", "job.yaml:12: spec.training.epochs: input should be a valid integer, not 'no'"),
        ("      - uri: pvc://datasets/a.jsonl", "      - {uri: pvc://a/b}\n      - {revision: v1}", "job.yaml:11: spec.data.train[1].uri: required, but absent"),
        ("  output: {uri: pvc://models/bot}\n", "", "job.yaml:5: spec.output: required, but absent"),
        ("name: bot", "name: Bot", "job.yaml:4: metadata.name must be 1 to 40 lower-case letters"),
        ("pvc://scratch", "hf://a/b", "job.yaml:13: spec.workspace: uri must be pvc://CLAIM/PATH"),
        ("pvc://models/base", "file:///models/base", "job.yaml:6: spec.model.uri: file:///models/base works only with `ftj run --local`"),
        ("pvc://datasets/a.jsonl", "file:///a.jsonl", "job.yaml:10: spec.data.train[0].uri: file:///a.jsonl works only with"),
        ("kind: FineTuneJob", "kind: Job", "job.yaml: not a FineTuneJob: write apiVersion: finetune.dev/v1alpha1 and kind: FineTuneJob (found finetune.dev/v1alpha1, Job)"),
        ("  method: {type: lora}\n", "  method: {type: lora}\n  method: {type: full}\n", 'job.yaml:8: not YAML: found duplicate key "method"'),
        ("method: {type", "method: {{type", "job.yaml:"),
        ("  name: bot", "\tname: bot", "job.yaml:4: not YAML:"),
        (GOOD, "", "job.yaml: the file is empty"),
        (GOOD, "- 1\n", "job.yaml: this is not a Kubernetes object"),
        (GOOD, f"{GOOD}---\n{GOOD}", "job.yaml: 2 documents; ftj run takes one FineTuneJob"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_sentence_with_its_line(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    assert old in GOOD
    (line,) = complaints(tmp_path, GOOD.replace(old, new))
    assert line.startswith(complaint)


def test_every_mistake_is_said_at_once(tmp_path: Path) -> None:
    lines = complaints(
        tmp_path, GOOD.replace("type: lora", "type: x").replace("2e-4", "2").replace("pvc://models/bot", "x")
    )
    assert [line.partition(": ")[0] for line in lines] == ["job.yaml:7", "job.yaml:12", "job.yaml:14"]


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda path: None, "there is no such file"),
        (lambda path: path.mkdir(), "this is a folder"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "not a text file in UTF-8"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, make: object, complaint: str) -> None:
    path = tmp_path / "job.yaml"
    make(path)  # type: ignore[operator]
    with pytest.raises(CliError, match=complaint):
        manifest.read(str(path))


def test_a_wrong_field_hides_no_rule(tmp_path: Path) -> None:
    """pydantic looks at rules across fields only when each field is right; a user wants all of it at once."""
    text = GOOD.replace("type: lora", "type: qlora").replace("2e-4", "2\n  compute: {strategy: zero3, nodes: no}")
    lines = complaints(tmp_path, text)
    assert [line.partition(": ")[0] for line in lines] == ["job.yaml:7", "job.yaml:12", "job.yaml:13"]
    assert "method.type qlora and compute.strategy zero3 or fsdp2 cannot go together" in lines[0]


def test_a_file_may_hold_several_jobs_and_other_kinds(tmp_path: Path) -> None:
    """Each job is checked, whatever else there is; a misspelt kind is no other kind."""
    path = tmp_path / "all.yaml"
    other = GOOD.replace("kind: FineTuneJob", "kind: FinetuneJob")
    listed = "apiVersion: v1\nkind: List\nitems:\n  - " + GOOD.replace("\n", "\n    ")
    path.write_text("\n---\n".join(["kind: ConfigMap", GOOD, GOOD.replace("2e-4", "2"), other, listed, "just text"]))
    jobs, wrong = manifest.read_all(str(path))
    assert [(job.job.metadata.name, job.where("spec", "method")) for job in jobs] == [("bot", f"{path}:9"), ("bot", f"{path}:60")]  # fmt: skip
    assert [(complaint.line, complaint.message[:30]) for complaint in wrong] == [
        (30, "spec.training.learningRate: in"),
        (None, "not a FineTuneJob: write apiVe"),
    ]
