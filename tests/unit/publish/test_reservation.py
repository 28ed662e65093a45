"""The output is checked and kept for one job before it trains."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from finetune_trainer.errors import BadInput
from finetune_trainer.publish import output, publish, reservation

OTHER = {"name": "other-job", "uid": "uid-9"}


def at(make_run, uri: str, **how):
    config = make_run(spec={"output": {"uri": uri}}, **how)
    (Path(config.claims_root) / "results").mkdir(exist_ok=True)
    return config


@pytest.mark.parametrize(
    ("first", "second", "file"),
    [
        ("pvc://results/a", "pvc://results/a", "pvc://results/.finetune-reserved-a.json"),
        ("pvc://results/deep/a", "pvc://results/deep/a", "pvc://results/deep/.finetune-reserved-a.json"),
        ("pvc://results", "pvc://results", "pvc://results/.finetune-reserved.json"),
        ("pvc://results", "pvc://results/a", "pvc://results/.finetune-reserved.json"),
        ("pvc://results/a", "pvc://results/a/b", "pvc://results/.finetune-reserved-a.json"),
        ("pvc://results/a/b", "pvc://results/a", "pvc://results/a/.finetune-reserved-b.json"),
        ("pvc://results/a", "pvc://results", "pvc://results/.finetune-reserved-a.json"),
    ],
)
def test_a_second_job_is_refused_and_learns_which_file_to_delete(make_run, first, second, file):
    output.reserve(at(make_run, first))
    late = at(make_run, second, job=OTHER)
    for refused in (output.check, output.reserve):
        with pytest.raises(BadInput, match=r"is reserved since .* UTC by job team-a/support-bot") as caught:
            refused(late)
        assert caught.value.cause.code == "OutputTaken"
    assert f"delete {file} " in caught.value.cause.remedy
    (Path(late.claims_root) / file.removeprefix("pvc://")).unlink()
    output.reserve(late)


def test_neighbours_do_not_disturb_each_other(make_run):
    output.reserve(at(make_run, "pvc://results/a"))
    output.reserve(at(make_run, "pvc://results/ab", job=OTHER))
    output.reserve(at(make_run, "pvc://results/team/a", job=OTHER))


@pytest.mark.parametrize("again", [{}, {"run": "fghij"}, {"uid": "uid-2"}])
def test_retries_reruns_and_a_recreated_job_keep_the_reservation(make_run, again):
    output.reserve(make_run())
    config = make_run(job=again)
    output.reserve(config)
    publish(config, lambda percent: None)
    folder = output.folder_of(config)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "the reservation is removed"


def test_a_published_output_belongs_to_its_job_without_a_reservation(make_run):
    config = make_run()
    publish(config, lambda percent: None)
    assert output.published(config)
    assert not output.published(make_run(job={"run": "fghij"}))
    with pytest.raises(BadInput, match="which this job did not write"):
        output.check(make_run(job=OTHER))


def test_publish_overwrites_nothing_that_another_job_reserved_meanwhile(make_run):
    config = make_run()
    output.reserve(config)
    file = Path(config.claims_root) / "models" / ".finetune-reserved-support-bot.json"
    file.unlink()
    output.reserve(make_run(job=OTHER))
    with pytest.raises(BadInput, match="by job team-a/other-job"):
        publish(config, lambda percent: None)
    assert json.loads(file.read_text())["job"]["name"] == "other-job"
    output.release(config)
    assert file.exists(), "only its holder removes it"


@pytest.mark.parametrize("left", ["", "{", '{"job": {}}', '{"job": {"name": "x"}, "since": "yesterday"}', "[]"])
def test_an_incomplete_reservation_blocks_nobody(make_run, left):
    config = make_run()
    (Path(config.claims_root) / "models" / ".finetune-reserved-support-bot.json").write_text(left)
    output.reserve(config)
    with pytest.raises(BadInput, match="is reserved"):
        output.check(make_run(job=OTHER))


def test_an_old_reservation_blocks_nobody(make_run, monkeypatch):
    output.reserve(make_run())
    monkeypatch.setattr(reservation, "KEPT_DAYS", 0)
    output.reserve(make_run(job=OTHER))
    monkeypatch.undo()
    with pytest.raises(BadInput, match="by job team-a/other-job"):
        output.check(make_run())


@contextlib.contextmanager
def ordinary_user() -> Iterator[None]:
    """Root may read everything."""
    if os.geteuid():
        yield
        return
    os.seteuid(65532)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    ("locked", "mode"),
    [("models", 0o000), ("models/team", 0o000), ("models/team", 0o555), ("models/team/bot", 0o000)],
)
def test_an_output_that_may_not_be_read_or_written_is_said_in_one_sentence(make_run, locked, mode):
    config = make_run(spec={"output": {"uri": "pvc://models/team/bot"}})
    with tempfile.TemporaryDirectory() as folder:  # pytest's own may be read by its user alone
        Path(folder).chmod(0o755)
        config.claims_root = folder
        (Path(folder) / "models" / "team" / "bot").mkdir(parents=True)
        (Path(folder) / locked).chmod(mode)
        with ordinary_user(), pytest.raises(BadInput) as caught:
            output.check(config)
        (Path(folder) / locked).chmod(0o755)
    assert caught.value.cause.code == "NotFound"
    assert re.fullmatch(
        r"spec\.output\.uri: pvc://models/team/bot cannot be read and written by user \d+: Permission denied",
        caught.value.cause.message,
    )
