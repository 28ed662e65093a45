"""`ftj validate --fix`: mended files beside their originals, and nothing else of the user's is touched."""

from __future__ import annotations

import hashlib
import json

import pytest
from finetune_trainer import fixes
from finetune_trainer.data.readers import data_files
from finetune_trainer.errors import BadInput

ROWS = [{"text": "a"}, {"text": "a"}, {"text": "b"}]


def test_a_mended_file_lies_beside_its_original_with_a_manifest(bench):
    path = bench.write("train.jsonl.gz", ROWS)
    fixed = bench.mend("DropDuplicates")
    for _ in range(2):  # the second time finds its own result
        [written] = fixes.publish(fixed, allowed=0.0)
        target = path.with_name("train.fixed.jsonl")
        assert written.fixed == str(target)
        assert target.read_bytes() == b'{"text":"a"}\n{"text":"b"}\n'
        manifest = json.loads(path.with_name("train.fixed.manifest.json").read_bytes())
        assert (
            manifest["original"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest() == written.original_digest
        )
        assert manifest["fixed"]["sha256"] == hashlib.sha256(target.read_bytes()).hexdigest() == written.fixed_digest
    assert sorted(each.name for each in path.parent.iterdir()) == [
        "train.fixed.jsonl",
        "train.fixed.manifest.json",
        path.name,
    ]
    assert data_files(path.parent) == [path], "a folder of data does not hold its rows twice from now on"


def test_what_lies_there_is_never_overwritten(bench):
    first, second = bench.write("a.jsonl", ROWS), bench.write("b.jsonl", ROWS[::-1])
    taken = second.with_name("b.fixed.jsonl")
    taken.write_text("mine")
    with pytest.raises(
        BadInput, match=r"b.fixed.jsonl already exists and is not what the fixes of pvc://datasets/b.jsonl give now"
    ) as refused:
        fixes.publish(bench.mend("DropDuplicates"), allowed=0.0)
    assert refused.value.cause.code == "OutputTaken"
    assert taken.read_text() == "mine"
    assert not first.with_name("a.fixed.jsonl").exists(), "all or none"


def test_two_files_of_one_name_are_told_apart(bench):
    bench.write("a.jsonl", ROWS)
    bench.write("a.csv", ROWS)
    with pytest.raises(BadInput, match="would both be written as"):
        fixes.publish(bench.mend("DropDuplicates"), allowed=0.0)


def test_rows_that_cannot_be_used_are_not_left_out_unasked(bench):
    path = bench.write("a.jsonl", [*ROWS, "{", *ROWS])
    with pytest.raises(
        BadInput, match=r"^pvc://datasets/a.jsonl:4: is not JSON.*; 1 of 7 rows cannot be used"
    ) as refused:
        fixes.publish(bench.mend("DropDuplicates"), allowed=0.1)
    assert "DropInvalid" in refused.value.cause.remedy
    assert fixes.publish(bench.mend("DropDuplicates"), allowed=0.2)
    path.with_name("a.fixed.jsonl").unlink()
    fixed = bench.mend("DropInvalid", to_publish=True)
    assert fixes.publish(fixed, allowed=0.0)
    assert path.with_name("a.fixed.jsonl").read_text().count("\n") == 6
