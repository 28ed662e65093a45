"""What a local run remembers, and what it makes of its processes' last words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from finetune_api.contract import Cause, Progress, TerminationMessage
from finetune_api.operator_state import OperatorState
from finetune_api.planner.facts import DataFacts, ModelShape, PlanFacts
from finetune_api.status import ArtifactsStatus, CheckpointStatus, DataStatus, FailureStatus, FineTuneJobStatus
from finetune_cli import manifest
from finetune_cli.errors import CliError
from finetune_cli.local import status as book
from finetune_cli.local.processes import speaks_for_all
from finetune_cli.local.run import LocalOptions, _claims_root, _Given, _settle, _take_notch
from finetune_cli.local.state import Run, run_of

from .conftest import JOB

TEXT = JOB.replace("pvc://datasets/bot.jsonl", "file:///data/a.jsonl") + "  compute: {nodes: 1, device: cpu}\n"


def read(folder: Path, text: str = TEXT) -> manifest.Manifest:
    (folder / "job.yaml").write_text(text)
    return manifest.read(str(folder / "job.yaml"))


def run(folder: Path, text: str = TEXT) -> Run:
    given = read(folder, text)
    return run_of(given, given.job, folder)


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("", "", True),
        ("nodes: 1", "nodes: 2", True),
        ("rank: 8", "rank: 8", True),
        ("type: lora", "type: full", False),
        ("name: bot", "name: bat", False),
        ("a.jsonl", "b.jsonl", False),
    ],
)
def test_a_run_is_known_by_what_its_checkpoints_depend_on(tmp_path: Path, old: str, new: str, same: bool) -> None:
    assert (run(tmp_path).layout.root == run(tmp_path, TEXT.replace(old, new)).layout.root) is same


def test_a_run_token_and_another_file_begin_another_run(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    first = run(tmp_path)
    token = run(tmp_path, TEXT + "  runToken: again\n")
    assert first.ref.uid == token.ref.uid
    assert first.ref.run != token.ref.run
    assert run(tmp_path / "other").ref.uid != first.ref.uid


def test_the_status_is_kept_whole(tmp_path: Path) -> None:
    it = run(tmp_path)
    it.layout.root.mkdir(parents=True)
    assert it.load() == FineTuneJobStatus()
    status = FineTuneJobStatus()
    book.begin(status, "prepare")
    it.save(status)
    assert it.load() == status
    it.status_file.write_text('{"phase": "Trai')
    with pytest.raises(CliError, match="--fresh starts anew"):
        it.load()


def test_a_run_is_under_way_once(tmp_path: Path) -> None:
    with run(tmp_path).lock(), pytest.raises(CliError, match=r"already under way in process \d+"), run(tmp_path).lock():
        pass
    with run(tmp_path).lock():
        pass


def message(stage: Any, outcome: Any = "succeeded", **fields: Any) -> TerminationMessage:
    return TerminationMessage(stage=stage, outcome=outcome, exit_code=0, **fields)


def test_a_run_that_is_stopped_goes_on_where_it_was() -> None:
    """Prepared stays prepared; the next attempt at training has the next number; the end has the words of the cluster."""
    status = FineTuneJobStatus()
    book.conclude(status, book.begin(status, "prepare"), message("prepare", data=DataStatus(rows=10)))
    attempt = book.begin(status, "train")
    book.advance(status, attempt, Progress(stage="train", step=7, total_steps=10, percent=70, loss=1.5))
    stopped = message("train", "stopped", step=7, last_checkpoint=CheckpointStatus(step=7))
    book.conclude(status, attempt, stopped)
    assert (status.phase, status.last_checkpoint) == ("Suspended", CheckpointStatus(step=7))
    assert book.next_stage(status) == "train"
    second = book.begin(status, "train")  # and then the machine was switched off
    third = book.begin(status, "train")
    assert (second.number, second.outcome, third.number) == (2, "Evicted", 3)
    book.conclude(status, third, message("train", resumed_from_step=7, step=10))
    assert third.resumed_from_step == 7
    artifacts = ArtifactsStatus(uri="file:///out")
    book.conclude(status, book.begin(status, "publish"), message("publish", artifacts=artifacts))
    assert book.next_stage(status) is None
    assert status.phase == "Completed"
    assert status.artifacts == artifacts
    assert status.conditions
    assert [c.type for c in status.conditions] == ["Complete"]


def test_a_failed_stage_is_told_and_can_be_tried_again() -> None:
    status = FineTuneJobStatus()
    cause = Cause(code="InvalidData", message="a.jsonl, line 3: not JSON", remedy="Mend it")
    book.conclude(status, book.begin(status, "prepare"), message("prepare", "failed", cause=cause))
    assert status.failure
    assert (status.phase, status.failure.message, status.failure.remedy) == ("Failed", cause.message, "Mend it")
    book.begin(status, "prepare")
    assert (status.phase, status.failure, status.conditions) == ("Preparing", None, None)


@pytest.mark.parametrize(
    ("outcomes", "speaker"),
    [
        ([("succeeded", 0, 5), ("succeeded", 0, 4)], 0),
        ([("stopped", 5, 5), ("succeeded", 0, 4)], 0),
        ([("failed", 7, 1), ("failed", 4, 9)], 1),
        ([("failed", 1, 9), ("failed", 4, 2)], 1),
        ([("failed", 7, 9), ("failed", 7, 2)], 1),
        ([("succeeded", 0, 1), ("failed", 7, 2)], 1),
    ],
)
def test_one_pod_speaks_for_all(outcomes: list[tuple[Any, int, float]], speaker: int) -> None:
    """The cause before those who only saw a peer go, and the earliest cause before its consequences."""
    messages = [
        TerminationMessage(stage="train", outcome=outcome, exit_code=code, rank=rank, time=time)
        for rank, (outcome, code, time) in enumerate(outcomes)
    ]
    assert speaks_for_all(messages).rank == speaker


def test_claims_are_folders(tmp_path: Path) -> None:
    given = read(tmp_path)
    with pytest.raises(CliError, match=r"job.yaml:5: spec.model is on claim models: give --claims DIR"):
        _claims_root(given, LocalOptions())
    with pytest.raises(CliError, match=r"job.yaml:5: spec.model is on claim models, but there is no folder"):
        _claims_root(given, LocalOptions(claims=tmp_path / "claims"))
    (tmp_path / "claims" / "models").mkdir(parents=True)
    assert _claims_root(given, LocalOptions(claims=tmp_path / "claims")) == str(tmp_path / "claims")
    assert (tmp_path / "claims" / "scratch").is_dir()


def test_each_out_of_memory_takes_one_notch_until_none_is_left(tmp_path: Path) -> None:
    text = TEXT + "  training: {activationCheckpointing: none}\n  retry: {oom: 3}\n"
    given, it = read(tmp_path, text), run(tmp_path, text)
    it.layout.root.mkdir(parents=True)
    shape = ModelShape(
        model_type="llama", hidden_size=64, layers=2, heads=4, kv_heads=4, head_dim=16, intermediate_size=128,
        vocab_size=512, parameters=200_000,
    )  # fmt: skip
    facts = PlanFacts(model=shape, data=DataFacts(rows=640, tokens=640 * 300, longest=300))
    given.job.status.state = OperatorState(facts=facts.wire()).encode()
    wanted = _Given(given.job.spec, approve=False)
    for tokens in (900, 450, 300):
        given.job.status.failure = FailureStatus(code="OutOfMemory", message="memory ran out")
        assert f"to {tokens}" in (_take_notch(given.job, it, wanted) or "")
        _settle(given.job, it, wanted)
        assert given.job.spec.compute.micro_batch_tokens == tokens
    assert _take_notch(given.job, it, wanted) is None
    assert given.job.status.failure is not None
    assert given.job.status.failure.message.endswith("(spec.retry.oom 3 is used up)")
    given.job.spec.retry.oom = 9
    assert _take_notch(given.job, it, wanted) is None
    assert "training.activationCheckpointing, so it was kept" in (given.job.status.failure.remedy or "")
    assert given.job.status.plan is not None
    digest = given.job.status.plan.digest
    it.forget()
    it.layout.root.mkdir(parents=True)
    _settle(given.job, it, wanted)
    assert given.job.status.plan.digest == digest, "an approval outlives the notches"
