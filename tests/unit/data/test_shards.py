"""Shards keep every row as it was written, and a damaged or foreign folder is never read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from finetune_trainer import sealed
from finetune_trainer.data.shards import FORMAT, KIND, SPLITS, Shards, SplitWriter
from finetune_trainer.data.stepplan import StepPlan, path_in
from finetune_trainer.errors import BadInput
from hypothesis import given, settings
from hypothesis import strategies as st

ROWS = st.lists(
    st.lists(st.tuples(st.integers(0, 2**31 - 1), st.booleans()), min_size=1, max_size=40), min_size=0, max_size=12
)


def write(folder: Path, rows: dict[str, list[list[tuple[int, bool]]]], **manifest: object) -> Path:
    facts = {
        "kind": KIND,
        "format": FORMAT,
        "sources": ["train.jsonl"],
        "digests": {"tokenizer": "t1", "template": "c1"},
        **manifest,
    }
    with sealed.sealing(folder, facts) as temporary:
        for split in SPLITS:
            with SplitWriter(temporary, split) as writer:
                for number, row in enumerate(rows.get(split, [])):
                    ids, mask = zip(*row, strict=True)
                    writer.append(ids, mask, prompt_length=len(ids) // 2, source=(0, number + 1, number * 10, 9))
        sealed.write_json(path_in(temporary), StepPlan(3, 5, 2, "k").to_json())
    return folder


@settings(max_examples=25, deadline=None)
@given(train=ROWS, test=ROWS)
def test_rows_come_back_as_written(tmp_path_factory, train, test):
    shards = Shards.open(write(tmp_path_factory.mktemp("s") / "prepared", {"train": train, "test": test}), content=True)
    for split, rows in ((shards.train, train), (shards.validation, []), (shards.test, test)):
        assert split.rows == len(rows)
        assert split.lengths().tolist() == [len(row) for row in rows]
        for number, row in enumerate(rows):
            assert split.tokens(number).tolist() == [token for token, _ in row]
            assert split.mask(number).tolist() == [False] + [bit for _, bit in row[1:]]
            assert split.prompt_length(number) == len(row) // 2
            assert split.source(number) == ("train.jsonl", number + 1)
            assert split.source_ids(number)[2:] == (number * 10, 9)
    assert shards.plan() == StepPlan(3, 5, 2, "k")


ONE = {"train": [[(5, True), (6, True), (7, False)]] * 4}


@pytest.mark.parametrize(
    "name", [f"train.{part}" for part in ("tokens.i32", "mask.bits", "offsets.i64", "prompt.i32", "source.i64")]
)
def test_a_torn_file_is_found(tmp_path, name):
    folder = write(tmp_path / "prepared", ONE)
    path = folder / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(sealed.Torn, match=name.replace(".", r"\.")):
        Shards.open(folder)
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])  # same size, other content
    with pytest.raises(sealed.Torn, match="changed after"):
        Shards.open(folder, content=True)
    path.unlink()
    with pytest.raises(sealed.Torn, match="missing"):
        Shards.open(folder)


def test_arrays_that_do_not_fit_each_other_are_refused_even_when_the_seal_agrees(tmp_path):
    folder = write(tmp_path / "prepared", ONE)
    manifest = json.loads((folder / "manifest.json").read_text())
    path = folder / "train.tokens.i32"
    path.write_bytes(path.read_bytes()[:-4])
    manifest["files"][path.name]["size"] -= 4
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(sealed.Torn, match="do not fit"):
        Shards.open(folder)


def test_a_folder_without_its_seal_is_nothing(tmp_path):
    folder = write(tmp_path / "prepared", ONE)
    (folder / "manifest.json").unlink()
    with pytest.raises(sealed.Torn):
        Shards.open(folder)


@pytest.mark.parametrize(
    ("manifest", "digests", "says"),
    [
        ({}, {"tokenizer_digest": "t2"}, "tokenizer is not the one"),
        ({}, {"template_digest": "c2"}, "chat template is not the one"),
        ({"format": 2}, {}, "reads shards of format 1"),
    ],
)
def test_foreign_shards_are_refused(tmp_path, manifest, digests, says):
    folder = write(tmp_path / "prepared", ONE, **manifest)
    with pytest.raises(BadInput, match=says):
        Shards.open(folder, **digests)


def test_a_row_that_cannot_be_right_is_not_written(tmp_path):
    with SplitWriter(tmp_path, "train") as writer:
        for ids, mask, prompt in (([], [], 0), ([1, 2], [True], 0), ([1, 2], [True, True], 3)):
            with pytest.raises(ValueError):
                writer.append(ids, mask, prompt_length=prompt, source=(0, 1, 0, 1))
    assert writer.counts.rows == 0
    assert np.fromfile(tmp_path / "train.offsets.i64", "<i8").tolist() == [0]
