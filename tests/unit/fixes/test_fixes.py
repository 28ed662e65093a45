"""Fixes do what was asked, say what they did, and leave the originals as they were."""

from __future__ import annotations

import datetime
import decimal
import hashlib
import json

import numpy as np
import pytest
from finetune_api.data import DataSpec
from finetune_api.findings import FixRecord
from finetune_trainer import fixes
from finetune_trainer.data import formats
from finetune_trainer.errors import BadInput
from finetune_trainer.fixes import mended
from finetune_trainer.fixes.keyset import KeySet
from hypothesis import given, settings
from hypothesis import strategies as st


def pair(prompt: str, completion: str = "yes", **fields) -> dict:
    return {"prompt": prompt, "completion": completion, **fields}


def deep(value, depth: int):
    for _ in range(depth):
        value = [value]
    return value


LONG = " ".join(f"{word}{number}" for number in range(12) for word in ("fox", "dog", "mill", "river", "potion")) + " "
MAIL, KEY = "jane.doe@firma.de", "ghp_" + "a8Kq2ZxP0mLr7TnW4vYs9BcD1eFg3HjU5iQo"

CASES = {
    # rows; fixes; rows that are left; rows touched; the sentence
    "a later copy is dropped": (
        [pair("a"), pair("b"), pair("a", id=7), pair("a", "no")],
        ["DropDuplicates"],
        [(1, pair("a")), (2, pair("b")), (4, pair("a", "no"))],
        [1],
        "1 row is the same as an earlier one, and was left out.",
    ),
    "a text with another label is no copy": (
        [{"text": "a", "label": "x"}, {"text": "a", "label": "y"}, {"text": "a", "label": "x"}],
        ["DropDuplicates"],
        [(1, {"text": "a", "label": "x"}), (2, {"text": "a", "label": "y"})],
        [1],
        "1 row is",
    ),
    "personal data is redacted in all texts of a row": (
        [pair(f"write to {MAIL}", meta={"by": [MAIL, 3]}), pair("b")],
        ["RedactPii"],
        [(1, pair("write to [EMAIL]", meta={"by": ["[EMAIL]", 3]})), (2, pair("b"))],
        [1],
        "1 row was redacted: e-mail addresses 2.",
    ),
    "what holds a row together is not": (
        [{"messages": [{"role": "user", "content": MAIL, "id": MAIL}, {"role": "assistant", "content": "ok"}]}],
        ["RedactPii"],
        [(1, {"messages": [{"role": "user", "content": "[EMAIL]", "id": MAIL}, {"role": "assistant", "content": "ok"}]})],
        [1],
        "1 row was",
    ),
    "turns that a table holds as JSON stay JSON": (
        [{"messages": json.dumps([{"role": "user", "content": f"me:\n{MAIL}"}, {"role": "assistant", "content": "ok"}])}],
        ["RedactPii"],
        [(1, {"messages": json.dumps([{"role": "user", "content": "me:\n[EMAIL]"}, {"role": "assistant", "content": "ok"}])})],
        [1],
        "1 row was redacted: e-mail addresses 1.",
    ),
    "so does an answer in JSON, whatever its fields are called": (
        [pair(MAIL, json.dumps({"to": f"me:\n{MAIL}", "card": 4539148803436467, "id": MAIL})), pair("b", f"[{MAIL}\\n")],
        ["RedactPii"],
        [
            (1, pair("[EMAIL]", json.dumps({"to": "me:\n[EMAIL]", "card": "[CARD]", "id": "[EMAIL]"}))),
            (2, pair("b", "[[EMAIL]\\n")),
        ],
        [2],
        "2 rows were redacted: e-mail addresses 4, ",
    ),
    "however deep it is nested": (
        [pair("a", "[" * 700 + json.dumps(f"me:\n{MAIL}") + "]" * 700, more=deep(MAIL, 700))],
        ["RedactPii"],
        [(1, pair("a", "[" * 700 + json.dumps("me:\n[EMAIL]") + "]" * 700, more=deep("[EMAIL]", 700)))],
        [1],
        "1 row was redacted: e-mail addresses 2.",
    ),
    "nor is a label": (
        [{"text": MAIL, "label": MAIL}],
        ["RedactPii"],
        [(1, {"text": "[EMAIL]", "label": MAIL})],
        [1],
        "1 row was",
    ),
    "secrets are redacted": (
        [pair("key", f"export TOKEN={KEY}"), pair(MAIL)],
        ["RedactSecrets"],
        [(1, pair("key", "export TOKEN=[SECRET]")), (2, pair(MAIL))],
        [1],
        "1 row was redacted: GitHub tokens 1.",
    ),
    "what is the same once it is redacted is dropped behind it": (
        [pair(f"to {MAIL}"), pair("to max.moritz@firma.de")],
        ["RedactPii", "DropDuplicates"],
        [(1, pair("to [EMAIL]"))],
        [2, 1],
        "2 rows were redacted: e-mail addresses 2.",
    ),
    "but not before it": (
        [pair(f"to {MAIL}"), pair("to max.moritz@firma.de")],
        ["DropDuplicates", "RedactPii"],
        [(1, pair("to [EMAIL]")), (2, pair("to [EMAIL]"))],
        [0, 2],
        "0 rows are",
    ),
    "almost the same is dropped, exactly the same is not": (
        [pair(LONG + "one"), pair("b"), pair(LONG + "two"), pair("c"), pair("c")],
        ["DropNearDuplicates"],
        [(1, pair(LONG + "one")), (2, pair("b")), (4, pair("c")), (5, pair("c"))],
        [1],
        "1 row is almost the same as an earlier one, and was left out.",
    ),
    "near duplicates between other fixes": (
        [pair(LONG + MAIL), pair("b"), pair("b"), pair(LONG + "max.moritz@firma.de"), pair("c")],
        ["DropDuplicates", "DropNearDuplicates", "RedactPii"],
        [(1, pair(LONG + "[EMAIL]")), (2, pair("b")), (5, pair("c"))],
        [1, 1, 1],
        "1 row is the same",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_fixes_do_what_was_asked(bench, name):
    rows, wanted, left, touched, says = CASES[name]
    original = bench.write("train.jsonl", rows)
    before = original.read_bytes()
    fixed = bench.mend(*wanted)
    assert bench.rows(fixed) == left
    assert [record.fix for record in fixed.records] == wanted
    assert [record.rows for record in fixed.records] == touched
    assert fixed.records[0].detail.startswith(says)
    assert original.read_bytes() == before
    assert [(file.part, file.name) for file in fixed.files] == [("train", "pvc://datasets/train.jsonl")]


def test_nothing_is_written_where_nothing_is_to_be_done(bench):
    bench.write("a.jsonl", [pair("a"), "not json"])
    bench.write("b.jsonl", [pair(MAIL)])
    fixed = bench.mend("RedactPii", "DropInvalid", "Truncate")
    assert fixed.files[0] == bench.files[0]
    [written] = fixed.written
    assert written.original == "pvc://datasets/b.jsonl"
    assert written.fixed == "pvc://scratch/run/mended/train-001-b.fixed.jsonl"
    assert [record.rows for record in fixed.records] == [1, 0, 0]
    assert {path.name.partition(".")[0] for path in (bench.folder / "mended").iterdir()} == {"train-001-b"}
    assert bench.mend("DropInvalid").written == []


def test_copies_are_looked_for_over_files_but_within_a_part(bench):
    for name, part in (("a", "train"), ("b", "train"), ("c", "test")):
        bench.write(f"{name}.jsonl", [pair("a"), pair(name * 2)], part)
    fixed = bench.mend("DropDuplicates")
    assert [[line for line, _ in bench.rows(fixed, index)] for index in range(3)] == [[1, 2], [2], [1, 2]]


@pytest.mark.parametrize("name", ["train.jsonl", "train.json", "train.jsonl.gz", "train.csv", "train.parquet"])
def test_rows_of_any_kind_of_file_keep_their_lines(bench, name):
    rows = [pair("a", "x"), pair("a", "x"), pair(MAIL, "y\nz"), pair("", "z"), pair("b", "z")]
    path = bench.write(name, rows)
    known = [(row.line, row.value) for row in fixes.read_rows(path)]
    fixed = bench.mend("DropDuplicates", "RedactPii")
    mended_rows = list(fixes.read_rows(fixed.files[0].path))
    assert [row.line for row in mended_rows] == [line for place, (line, _) in enumerate(known) if place != 1]
    assert [row.value and row.value["prompt"] for row in mended_rows] == ["a", "[EMAIL]", None, "b"]
    assert mended_rows[2].code == "EmptyField"
    assert "prompt is empty" in mended_rows[2].fault


def test_rows_that_cannot_be_used_stand_where_they_stood(bench):
    bench.write("train.jsonl", ["1", pair("a"), "{", pair(""), pair("a"), pair(MAIL), "\0"])
    fixed = bench.mend("DropDuplicates", "RedactPii")
    rows = list(fixes.read_rows(fixed.files[0].path))
    assert [(row.line, row.code) for row in rows] == [
        (1, "InvalidJson"), (2, None), (3, "InvalidJson"), (4, "EmptyField"), (6, None), (7, "InvalidEncoding"),
    ]  # fmt: skip
    assert all((row.value is None) == (row.fault is not None) for row in rows)


def test_a_file_of_which_nothing_is_left(bench):
    bench.write("a.jsonl", [pair("a")])
    bench.write("b.jsonl", [pair("a"), "{"])
    fixed = bench.mend("DropDuplicates")
    assert bench.rows(fixed, 1) == [(2, None)]


def test_the_same_data_gives_the_same_bytes(bench):
    bench.write("train.jsonl", [pair(f"{number % 7} {MAIL}", "ü" * (number + 1)) for number in range(40)] + ["{"])

    def made():
        fixed = bench.mend("RedactPii", "DropDuplicates")
        files = sorted(path for path in (bench.folder / "mended").iterdir())
        return fixed.written, [(path.name, path.read_bytes()) for path in files]

    first = made()
    assert made() == first
    written, files = first
    content = dict(files)
    assert sorted(content) == [
        f"train-000-train.fixed.{end}" for end in ("jsonl", "lines.i64", "manifest.json", "unusable.jsonl")
    ]
    manifest = json.loads(content["train-000-train.fixed.manifest.json"])
    assert (
        manifest["original"]["sha256"]
        == hashlib.sha256(bench.files[0].path.read_bytes()).hexdigest()
        == written[0].original_digest
    )
    assert (
        manifest["fixed"]["sha256"]
        == hashlib.sha256(content["train-000-train.fixed.jsonl"]).hexdigest()
        == written[0].fixed_digest
    )
    assert manifest["fixes"] == ["RedactPii", "DropDuplicates"]
    assert manifest["counts"] == {"RedactPii": 40, "DropDuplicates": 0, "unusable": 1}
    assert (manifest["original"]["rows"], manifest["fixed"]["rows"]) == (41, 40)


def test_a_file_that_changes_under_the_reader_is_refused(bench):
    path = bench.write("train.jsonl", [pair(MAIL)] * 3)
    with pytest.raises(BadInput, match=r"^pvc://datasets/train.jsonl was changed while it was read$"):
        bench.mend("RedactPii", consumed=lambda _: path.write_text("{}\n"))


def test_a_file_that_cannot_be_read_is_refused_as_reading_would(bench):
    path = bench.write("train.jsonl", [pair("a")])
    path.write_bytes(b"")
    with pytest.raises(BadInput, match=r"^pvc://datasets/train.jsonl is empty$"):
        bench.mend("RedactPii")
    path.unlink()
    with pytest.raises(BadInput, match=r"^pvc://datasets/train.jsonl cannot be read: No such file or directory$"):
        bench.mend("RedactPii")


def test_rebalance_needs_labels(bench):
    bench.write("train.jsonl", [pair("a")])
    with pytest.raises(
        BadInput, match="Rebalance needs rows with labels, but the format of these is prompt-completion"
    ):
        bench.mend("Rebalance", form="prompt-completion")
    with pytest.raises(BadInput, match="Rebalance needs"):
        bench.mend("Rebalance", "RedactPii")


def test_fixes_that_are_made_later_set_what_they_need_and_are_recorded():
    data = DataSpec.model_validate(
        {"train": [{"uri": "pvc://d/a"}], "overlong": "drop", "fixes": ["DropInvalid", "Truncate"]}
    )
    assert (fixes.settled(data).checks.max_invalid_fraction, fixes.settled(data).overlong) == (1.0, "truncate")
    assert (data.checks.max_invalid_fraction, data.overlong) == (0.0, "drop"), "the spec itself stays as it is"
    none = [FixRecord(fix=fix, rows=0, detail="-") for fix in ("DropInvalid", "Truncate", "RedactPii", "Rebalance")]
    told = fixes.completed(none, invalid=2, truncated=1, lost_tokens=1234, rebalanced=(3, "so."))
    assert [(record.rows, record.detail) for record in told] == [
        (2, "2 rows cannot be used, and were left out."),
        (1, "1 row was cut to spec.data.maxLength, and lost 1,234 tokens."),
        (0, "-"),
        (3, "so."),
    ]
    assert fixes.completed(none) == none


def test_whatever_a_table_holds_can_be_written():
    value = {
        "day": datetime.date(2024, 5, 1),
        "raw": b"\xffa",
        "price": decimal.Decimal("1.50"),
        "big": 2**80,
        "half": "\ud800",
    }
    assert json.loads(mended.encoded(value)) == {"day": "2024-05-01", "raw": "\\xffa", "price": "1.50", "big": 2**80, "half": "\ud800"}  # fmt: skip
    assert b"\n" not in mended.encoded({"a": "x\ny\u2028"})


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 30)), max_size=12))
def test_a_key_set_is_a_set(batches):
    keys, seen = KeySet(), set()
    for batch in batches:
        fresh = keys.add(np.array(batch, dtype=np.uint64))
        for key, is_new in zip(batch, fresh, strict=True):
            assert is_new == (key not in seen)
            seen.add(key)


VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from([MAIL, KEY]), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6)  # fmt: skip
FIELDS = st.sampled_from(["prompt", "completion", "text", "label", "messages", "note", "id"])
LINES = st.dictionaries(FIELDS, VALUES, max_size=4).map(json.dumps) | st.builds(lambda a, b: json.dumps(pair(a, b)), st.sampled_from(["a", MAIL]), st.sampled_from(["b", KEY])) | st.text(max_size=9)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(lines=st.lists(LINES.filter(lambda line: "\n" not in line and "\r" not in line), min_size=1, max_size=8))
def test_any_lines_end_as_rows_that_say_where_they_come_from(tmp_path_factory, lines):
    from tests.unit.fixes.conftest import Bench

    bench = Bench(tmp_path_factory.mktemp("any"))
    bench.write("train.jsonl", [json.dumps(pair("first")), *lines])
    known = {row.line: row.value for row in fixes.read_rows(bench.files[0].path)}
    fixed = bench.mend("RedactPii", "DropDuplicates", "RedactSecrets")
    for line, value in bench.rows(fixed):
        if value is not None and fixed.written:
            example = formats.read(value, "prompt-completion")
            assert MAIL not in example.prompt + example.completion
            assert KEY not in example.prompt + example.completion
            assert set(value) == set(known[line])
            assert len(example.prompt) > 0
