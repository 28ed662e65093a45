"""Data files of every kind, plain and compressed: their rows with the lines on which they begin, and what is wrong with them."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import zlib
from datetime import UTC, datetime

import pyarrow as pa
import pytest
import zstandard
from finetune_api.checks import ROW_CODES
from finetune_trainer.data import readers
from finetune_trainer.data.readers import (
    Unreadable,
    arrays,
    content,
    file_kind,
    lines,
    packing,
    read_rows,
    rows_at,
    tables,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

ROWS = [{"prompt": f"say {number}", "completion": f'"{number}",\n{{[é' + chr(0x1F600)} for number in range(20)]

NOISE = [{"a": random.Random(seed).randbytes(40).hex()} for seed in range(6000)]


def as_csv(rows: list[dict], delimiter: str = ",", **how) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, **how)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows: list[dict] | pa.Table, **how) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows), sink, **how)
    return sink.getvalue()


def as_lines(rows: list[dict], end: str = "\n", **how) -> bytes:
    return "".join(json.dumps(row, **how) + end for row in rows).encode()


KINDS = {
    # name: (bytes, kind, line of each row)
    "lines": (as_lines(ROWS), "jsonl", lambda i: i + 1),
    "CRLF": (as_lines(ROWS, "\r\n", ensure_ascii=False), "jsonl", lambda i: i + 1),
    "CRCRLF": (as_lines(ROWS, "\r\r\n"), "jsonl", lambda i: 2 * i + 1),
    "CR": (as_lines(ROWS, "\r"), "jsonl", lambda i: i + 1),
    "blank lines": (b"\n \r\n" + as_lines(ROWS, "\r\n\n\t\n"), "jsonl", lambda i: 3 * i + 3),
    "no last end": (as_lines(ROWS).rstrip(), "jsonl", lambda i: i + 1),
    "BOM": (b"\xef\xbb\xbf" + as_lines(ROWS), "jsonl", lambda i: i + 1),
    "array": (json.dumps(ROWS).encode(), "json", lambda i: 1),
    "pretty array": (b"\xef\xbb\xbf \n" + json.dumps(ROWS, indent=2).encode() + b"\n", "json", lambda i: 4 * i + 3),
    "object": (json.dumps({"version": {"data": [1]}, "data": ROWS, "more": "]}"}, indent=1).encode(), "json", lambda i: 4 * i + 8),
    "object in one line": (json.dumps({"examples": ROWS}).encode(), "json", lambda i: 1),
    "CSV": (as_csv(ROWS), "csv", lambda i: 2 * i + 2),
    "TSV": (as_csv(ROWS, "\t"), "csv", lambda i: 2 * i + 2),
    "semicolons": (b"\xef\xbb\xbf" + as_csv(ROWS, ";", lineterminator="\n"), "csv", lambda i: 2 * i + 2),
    "quotes": (as_csv(ROWS, quoting=csv.QUOTE_ALL), "csv", lambda i: 2 * i + 2),
    "Parquet": (as_parquet(ROWS, row_group_size=7), "parquet", lambda i: i + 1),
}  # fmt: skip
PACKED = {
    "plain": lambda data: data,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.compress,
    "gz members": lambda data: gzip.compress(data[:100]) + gzip.compress(b"") + gzip.compress(data[100:]) + b"\0" * 9,
    "zst members": lambda data: zstandard.compress(data[:100]) + zstandard.compress(data[100:]),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("pack", PACKED)
def test_every_kind_is_read_by_its_content(tmp_path, name, pack):
    data, kind, line_of = KINDS[name]
    path = tmp_path / "whatever"
    path.write_bytes(PACKED[pack](data))
    taken = []
    rows = list(read_rows(path, taken.append))
    assert [row.value for row in rows] == ROWS
    assert [row.line for row in rows] == [line_of(i) for i in range(len(ROWS))]
    packed = pack.split()[0]
    assert file_kind(path) == (kind if packed == "plain" else f"{kind}.{packed}")
    assert 0 < sum(taken) <= path.stat().st_size, "progress ends with the file"
    if kind in ("jsonl", "json"):
        assert all(json.loads(data[row.offset : row.offset + row.length]) == row.value for row in rows)
    assert [row.value for row in rows_at(path, {rows[3].line})] == [ROWS[3] if line_of(3) > 1 else ROWS[0]]


def test_rows_are_found_again_without_reading_the_rest(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(as_lines([*ROWS, *NOISE])) + b"not gzip")
    assert [(row.line, row.value) for row in rows_at(path, [7, 2])] == [(2, ROWS[1]), (7, ROWS[6])]
    assert not list(rows_at(path, []))
    with pytest.raises(Unreadable):
        list(rows_at(path, [99999]))


def test_a_folder_gives_its_data_files_and_nothing_else(tmp_path):
    for name in ("b.csv", "a/x.jsonl.zst", "a/y.PARQUET", ".git/z.jsonl", "dataset_info.json", "notes.txt", "c.json"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    found = [file.relative_to(tmp_path).as_posix() for file in readers.data_files(tmp_path)]
    assert found == ["a/x.jsonl.zst", "a/y.PARQUET", "b.csv", "c.json"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(Unreadable, match=r"holds no \.jsonl, .* file, plain or compressed"):
        readers.data_files(tmp_path / "empty")


HUB = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/validation-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"]  # fmt: skip
SPLITS = {
    # name: (files, split, which are read, or what is wrong with all of them)
    "the hub's train": (HUB, "train", HUB[:2]),
    "the hub's validation": (HUB, "validation", HUB[2:3]),
    "the hub's test": (HUB, "test", HUB[3:]),
    "other words": (["a.jsonl", "My Dev.csv", "eval.jsonl", "val2.jsonl"], "validation", ["My Dev.csv", "val2.jsonl"]),
    "folders": (["train/1.jsonl", "test/1.jsonl", "test/train.jsonl"], "train", ["train/1.jsonl", "test/train.jsonl"]),
    "no split": (["contest.jsonl", "a/latest.jsonl", "training_.jsonl"][:2], "train", ["contest.jsonl", "a/latest.jsonl"]),
    "names without a split": (["a.jsonl", "test.jsonl"], "train", ["a.jsonl"]),
    "held-out rows under another name": (["train-00000-of-00001.parquet"], "test", ["train-00000-of-00001.parquet"]),
    "test alone": (["test.jsonl"], "train", "holds no file of the train split, only of test"),
    "no validation": (["test.jsonl", "train.jsonl"], "validation", "no file of the validation split, only of test and train"),
    "configurations": (["main/train-00000-of-00001.parquet", "socratic/train-00000-of-00001.parquet"], "train", "holds several configurations, such as main and socratic"),
    "years": (["2025/train.jsonl", "2026/train.jsonl"], "train", ["2025/train.jsonl", "2026/train.jsonl"]),
}  # fmt: skip


@pytest.mark.parametrize("name", SPLITS)
def test_of_a_folder_the_files_of_one_split_are_read(tmp_path, name):
    files, split, wanted = SPLITS[name]
    paths = [tmp_path / file for file in files]
    if isinstance(wanted, str):
        with pytest.raises(Unreadable, match=wanted):
            readers.of_split(paths, tmp_path, split)
    else:
        assert readers.of_split(paths, tmp_path, split) == [tmp_path / file for file in wanted]


FAULTY_ROWS = {
    # name: (file name, bytes, line, code, words)
    "cut last line": ("a.jsonl", b'{"a": "b"}\n{"a": "b', 2, "InvalidJson", "unterminated string starting at character 7, where the file ends: was it cut"),
    "not JSON": ("a.jsonl", b"{}\n{a: 1}\n{}", 2, "InvalidJson", "is not JSON: expecting property name"),
    "Python's own": ("a.jsonl", b"{}\n{'a': 1}\n", 2, "InvalidJson", "single quotes are Python's"),
    "a key twice": ("a.jsonl", b'{"a": {"b": 1, "b": 2}}\n', 1, "InvalidJson", 'has the key "b" twice'),
    "a key twice, spaced": ("a.jsonl", b'{"a" : 1, "a"\t: 2}\n', 1, "InvalidJson", 'has the key "a" twice'),
    "a key twice beside text like keys": ("a.jsonl", b'{"x": "\\u0022:", "a": "\\":", "a": 1}\n', 1, "InvalidJson", 'has the key "a" twice'),
    "NaN": ("a.jsonl", b'{"a": NaN}\n', 1, "InvalidJson", "holds NaN, which JSON does not know"),
    "infinity": ("a.jsonl", b'{"a": -Infinity}\n', 1, "InvalidJson", "holds -Infinity"),
    "1e999": ("a.jsonl", b'{"a": 1e999}\n', 1, "InvalidJson", "a number too large"),
    "digits": ("a.jsonl", b'{"a": ' + b"9" * 5000 + b"}\n", 1, "InvalidJson", "is not usable JSON"),
    "deep": ("a.jsonl", b'{"a": ' + b"[" * 9999 + b"]" * 9999 + b"}\n", 1, "InvalidJson", "nested too deeply"),
    "NUL": ("a.jsonl", b'{"a": "\0"}\n', 1, "InvalidEncoding", "holds NUL bytes"),
    "Latin 1": ("a.jsonl", '{"a": "é"}\n'.encode("latin-1"), 1, "InvalidEncoding", r"is not UTF-8 \(byte 0xe9 at 8\)"),
    "a number": ("a.jsonl", b"{}\n5\n", 2, "InvalidJson", "is a number, not an object"),
    "a list": ("a.jsonl", b"{}\n[1]\n", 2, "InvalidJson", "is a list, not an object"),
    "element": ("a.json", b'[{},\n"x"]', 2, "InvalidJson", "is a string, not an object"),
    "bad element": ("a.json", b'[{},\n{"a" 1}]', 2, "InvalidJson", "is not JSON: expecting ':' delimiter at character 6"),
    "cells": ("a.csv", b'prompt,completion\n"a\nb",c\nd,e,f\n', 4, "InvalidJson", "has 3 cells where the first line names 2 columns"),
    "too few cells": ("a.csv", b"text\n\n\n\ta,b\n", 4, "InvalidJson", "has 2 cells where the first line names 1 column"),
    "quote": ("a.csv", b'prompt,completion\n"a"b,c\n', 2, "InvalidJson", "is no row of a table"),
    "Latin 1 in a cell": ("a.csv", "text,label\na,b\né,c\n".encode("latin-1"), 3, "InvalidEncoding", "is not UTF-8"),
    "Latin 1 in Parquet": ("a", as_parquet(pa.table({"text": pa.Array.from_buffers(pa.string(), 2, pa.array(["a", "é"]).buffers())})).replace("é".encode(), b"\xe9\xe9"), 2, "InvalidEncoding", "not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTY_ROWS)
def test_a_faulty_row_has_its_line_its_check_and_a_reason(tmp_path, name):
    file, data, line, code, words = FAULTY_ROWS[name]
    (tmp_path / file).write_bytes(data)
    [row] = [row for row in read_rows(tmp_path / file) if row.value is None]
    assert (row.line, row.code) == (line, code)
    with pytest.raises(ValueError, match=words):
        raise ValueError(row.fault)


FAULTY_FILES = {
    # name: (file name, bytes, line, code, words)
    "empty": ("a.jsonl", b"", None, "InvalidJson", "is empty"),
    "blank": ("a.csv", b" \n\r\n", None, "InvalidJson", "is empty"),
    "pretty object": ("a.json", b'\n{\n"a": [1],\n"b": 1}\n', 2, "InvalidJson", "is one JSON object over several lines"),
    "pretty objects": ("a.json", b'{"a":\n1}\n{"a":\n1}\n', 1, "InvalidJson", "is one JSON object over several lines"),
    "cut array": ("a.json", b'[{"a": 1},\n{"a"', 2, "InvalidJson", r"closing \] is missing"),
    "cut string": ("a.json", b'[{"a": 1},\n\n"a', 3, "InvalidJson", "a string is not closed"),
    "comma": ("a.json", b"[{},\n,{}]", 2, "InvalidJson", "a value is missing next to a comma"),
    "brace": ("a.json", b"[{}\n}]", 2, "InvalidJson", "a } has no {"),
    "more": ("a.json", b"[{}]\n[{}]", 1, "InvalidJson", "something follows"),
    "two lists": ("a.json", b'{"data": [{}],\n"rows": []}', 1, "InvalidJson", 'holds two lists, "data" and "rows"'),
    "cut object": ("a.json", b'{"data": [{}]', 1, "InvalidJson", "what follows the list"),
    "open quote": ("a.csv", b'text,label\n"a\n\nb', 2, "InvalidJson", "a cell in quotes is not closed"),
    "columns": ("a.csv", b"text,label,text\n", 1, "InvalidJson", 'two columns are named "text"'),
    "UTF-16": ("a.csv", "text\na".encode("utf-16"), None, "InvalidEncoding", "is UTF-16 or UTF-32 text"),
    "UTF-16 without a mark": ("a.jsonl", '{"a": 1}'.encode("utf-16-le"), None, "InvalidEncoding", "is UTF-16"),
    "zip": ("a.jsonl", b"PK\x03\x04....", None, "InvalidJson", "is a zip archive"),
    "tar": ("a.jsonl.gz", gzip.compress(b"x" * 257 + b"ustar" + b"0" * 999), None, "InvalidJson", "is a tar archive"),
    "page": ("a.jsonl", b"<!DOCTYPE html>", None, "InvalidJson", "is an HTML page"),
    "twice": ("a.jsonl.gz", gzip.compress(gzip.compress(b"{}")), None, "InvalidJson", "is compressed twice"),
    "cut gzip": ("a.jsonl", gzip.compress(as_lines(ROWS))[:-9], None, "InvalidJson", "ends in the middle of its gzip data"),
    "cut zstd": ("a.jsonl", zstandard.compress(as_lines(ROWS))[:-9], None, "InvalidJson", "ends in the middle of its zstd data"),
    "damaged xz": ("a.jsonl", lzma.compress(as_lines(ROWS))[:-30] + b"x" * 30, None, "InvalidJson", "its xz data cannot be unpacked"),
    "behind bzip2": ("a.jsonl", bz2.compress(b"{}\n") + b"{}", None, "InvalidJson", "its bzip2 data cannot be unpacked"),
    "Parquet": ("a", as_parquet(ROWS)[:-5], 1, "InvalidJson", "is no sound Parquet file"),
    "Parquet's columns": ("a", as_parquet(pa.Table.from_arrays([pa.array(["a"])] * 2, names=["a", "a"])), None, "InvalidJson", 'has two columns named "a"'),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTY_FILES)
def test_a_file_whose_rows_cannot_be_told_apart_is_refused(tmp_path, name):
    file, data, line, code, words = FAULTY_FILES[name]
    (tmp_path / file).write_bytes(data)
    with pytest.raises(Unreadable, match=words) as caught:
        list(read_rows(tmp_path / file))
    assert (caught.value.line, caught.value.code) == (line, code)


def test_what_breaks_off_later_names_the_line_up_to_which_it_was_read(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(as_lines(NOISE))[:-1000])
    with pytest.raises(Unreadable, match="ends in the middle") as caught:
        list(read_rows(tmp_path / "a.gz"))
    assert 5000 < caught.value.line < len(NOISE)


BOMBS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstandard.compress}


@pytest.mark.parametrize("pack", BOMBS)
@pytest.mark.parametrize("filling", [b"0", b"\n", b'{"a": 1}\n'])
def test_a_bomb_is_refused(tmp_path, monkeypatch, pack, filling):
    monkeypatch.setattr(packing, "BOMB_BYTES", 1 << 18)
    (tmp_path / "a").write_bytes(BOMBS[pack](filling * ((2 << 18) // len(filling))))
    with pytest.raises(Unreadable, match="as decompression bombs do") as caught:
        list(read_rows(tmp_path / "a"))
    assert caught.value.code == "RowTooLarge"


def test_a_packing_that_asks_for_much_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "_MEMORY", 1 << 20)
    (tmp_path / "a").write_bytes(lzma.compress(b"{}"))  # wants 8 MiB
    with pytest.raises(Unreadable, match="its xz data cannot be unpacked"):
        list(read_rows(tmp_path / "a"))


LONG = {"a": 'x\\"' * 5000}
LONG_FILES = {
    "lines": lambda rows: as_lines(rows),
    "CR": lambda rows: as_lines(rows, "\r"),
    "CRLF": lambda rows: as_lines(rows, "\r\n"),
    "last line": lambda rows: as_lines(rows).rstrip(),
    "array": lambda rows: json.dumps(rows, indent=0).encode(),
    "nested": lambda rows: json.dumps([{"a": {"b": [row] * 3}} for row in rows]).encode(),
    "CSV": lambda rows: as_csv(rows),
    "Parquet": lambda rows: as_parquet(rows),
}


@pytest.mark.parametrize("block", [7, 100, 1 << 18])
@pytest.mark.parametrize("name", LONG_FILES)
def test_a_row_that_is_too_long_is_passed_over(tmp_path, monkeypatch, name, block):
    for module in (lines, arrays, tables, readers.parquet):
        monkeypatch.setattr(module, "MAX_ROW_BYTES", 1000)
    monkeypatch.setattr(content, "BLOCK_BYTES", block)
    monkeypatch.setattr(arrays, "BLOCK_BYTES", block)
    (tmp_path / "a.csv" if name == "CSV" else tmp_path / "a").write_bytes(
        LONG_FILES[name]([{"a": "b"}, LONG, {"a": "b"}, LONG])
    )
    rows = list(read_rows(next(tmp_path.iterdir())))
    assert [row.code for row in rows] == [None, "RowTooLarge", None, "RowTooLarge"]
    assert [row.line for row in rows] == {
        "array": [2, 5, 8, 11], "nested": [1] * 4, "CSV": [2, 3, 4, 5]
    }.get(name, [1, 2, 3, 4])  # fmt: skip


def test_a_quote_that_is_never_closed_does_not_swallow_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MAX_ROW_BYTES", 1000)
    (tmp_path / "a.csv").write_bytes(b'text\na\n"b\n' + b"c\n" * 9999)
    with pytest.raises(Unreadable, match="a cell in quotes is not closed within") as caught:
        list(read_rows(tmp_path / "a.csv"))
    assert (caught.value.line, caught.value.code) == (3, "RowTooLarge")


def test_points_in_time_in_parquet_are_texts(tmp_path):
    moment = pa.array([datetime(2026, 1, 2, tzinfo=UTC)] * 2, pa.timestamp("ns", "UTC"))
    (tmp_path / "a").write_bytes(as_parquet(pa.table({"text": ["a", "b"], "at": moment})))
    assert [row.value["text"] for row in read_rows(tmp_path / "a")] == ["a", "b"]
    assert str(next(read_rows(tmp_path / "a")).value["at"]).startswith("2026-01-02")


def test_structs_in_parquet_have_the_fields_that_were_written(tmp_path):
    rows = [
        {"label": None, "calls": [{"name": "weather", "arguments": {"city": "Rome", "at": [{"day": 1}]}}]},
        {"label": None, "calls": [{"name": "clock", "id": "c1", "arguments": {"zone": "utc", "at": [{"hour": 2}]}}]},
    ]
    (tmp_path / "a").write_bytes(as_parquet(pa.Table.from_pylist(rows)))
    assert [row.value for row in read_rows(tmp_path / "a")] == rows


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
OBJECTS = st.lists(st.dictionaries(st.text(max_size=5), VALUES, max_size=3), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(rows=OBJECTS, block=st.integers(1, 40), indent=st.sampled_from([None, 1]), ascii_only=st.booleans(), separators=st.sampled_from([None, (",", ":"), (" , ", " : ")]))  # fmt: skip
def test_any_rows_are_read_as_the_standard_library_reads_them(
    tmp_path_factory, rows, block, indent, ascii_only, separators
):
    folder = tmp_path_factory.mktemp("any")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(content, "BLOCK_BYTES", block)
        patch.setattr(arrays, "BLOCK_BYTES", block)
        how = {"ensure_ascii": ascii_only, "separators": separators}
        (folder / "a.json").write_text(json.dumps(rows, indent=indent, **how), encoding="utf-8", newline="")
        (folder / "a.jsonl").write_bytes(as_lines(rows, "\r\n", **how))
        array, in_lines = list(read_rows(folder / "a.json")), list(read_rows(folder / "a.jsonl"))
    assert [row.value for row in array] == rows == [row.value for row in in_lines]
    assert [row.line for row in in_lines] == list(range(1, len(rows) + 1))
    assert all(row.code in (None, *ROW_CODES) for row in array)


def test_the_checksum_of_gzip_is_looked_at(tmp_path):
    data = bytearray(gzip.compress(as_lines(ROWS)))
    data[-8] ^= 1
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(Unreadable, match="gzip data cannot be unpacked"):
        list(read_rows(tmp_path / "a"))
    assert zlib.crc32(as_lines(ROWS)) != int.from_bytes(data[-8:-4], "little")
