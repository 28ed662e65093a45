"""Good files, spoilt at random: every row is read or has its line, check and reason, and nothing else happens."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from random import Random

import pyarrow as pa
import pytest
import zstandard
from finetune_api.checks import ROW_CODES
from finetune_trainer.data import formats, readers
from finetune_trainer.data.formats import InvalidRow
from finetune_trainer.data.readers import Unreadable, read_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

SAID = ["Hallo Welt", 'a, "b"\nc', "{[é漢😀]}", "x" * 90, "\\u0041\\"]
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": [1, null]}'}}
ROWS = {
    "messages": [
        {"messages": [{"role": "user", "content": said}, {"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "c1", "content": said}, {"role": "assistant", "content": said, "weight": 1}], "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]}
        for said in SAID
    ],
    "sharegpt": [{"conversations": [{"from": "human", "value": said}, {"from": "gpt", "value": said}]} for said in SAID],
    "pairs": [{"prompt": said, "completion": said} for said in SAID],
    "alpaca": [{"instruction": said, "input": "", "output": said} for said in SAID],
    "labels": [{"text": said, "label": said[:1]} for said in SAID],
    "labelstudio": [{"data": {"text": said}, "annotations": [{"result": [{"type": "choices", "from_name": "q", "value": {"choices": ["a"]}}]}]} for said in SAID],
    "argilla": [{"fields": {"text": said}, "responses": {"label": [{"value": "a", "user_id": "1"}]}, "suggestions": {}} for said in SAID],
}  # fmt: skip
FLAT = ("pairs", "alpaca", "labels")


def _lines(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _csv(rows: list[dict]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _parquet(rows: list[dict]) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), sink, row_group_size=2)
    return sink.getvalue()


KINDS = {
    "lines": _lines,
    "array": lambda rows: json.dumps(rows).encode(),
    "pretty": lambda rows: json.dumps(rows, indent=1, ensure_ascii=False).encode(),
    "object": lambda rows: json.dumps({"version": 1, "data": rows, "n": [1]}, indent=1).encode(),
    "csv": _csv,
    "parquet": _parquet,
    "gz": lambda rows: gzip.compress(_lines(rows)),
    "bz2": lambda rows: bz2.compress(json.dumps(rows).encode()),
    "xz": lambda rows: lzma.compress(_lines(rows)),
    "zst": lambda rows: zstandard.compress(_lines(rows)),
}
GOOD = [(kind, name) for kind in KINDS for name in ROWS if name in FLAT or kind not in ("csv", "parquet")]

# Values in the place of others, and pieces that are put anywhere.
ODD = (
    None,
    True,
    0,
    -1,
    1.5,
    10**30,
    "",
    " ",
    "\0",
    "\ud800",
    [],
    {},
    ["a"],
    {"a": 1},
    [[[]]],
    "[",
    "{",
    '["a"]',
    b"\xff",
)
PIECES = (b"\0", b"\r", b"\n", b"\r\n", b"\xef\xbb\xbf", b"\xff", b'"', b"'", b"\\", b"{", b"}", b"[", b"]", b",", b":", b'"a": 1, "a": 2,', b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"[" * 2000, b"\\ud800", b"\\u0000", b"\xc3", "é".encode("latin-1"), b" " * 3000, b"\n" * 3000, b"{}\n" * 300, b"x" * 3000)  # fmt: skip
CODECS = ("utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "utf-8-sig", "utf-7")


def _replace_a_value(value, random: Random):
    """The value with one inside of it, or itself, become something odd."""
    inner = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    if not inner or random.random() < 0.15:
        return random.choice(ODD)
    key, old = random.choice(inner)
    if isinstance(value, dict):
        if random.random() < 0.15:
            return {other: kept for other, kept in inner if other != key}
        return {**value, key: _replace_a_value(old, random)}
    return [*value[:key], _replace_a_value(old, random), *value[key + 1 :]]


def _encode_otherwise(data: bytes, random: Random) -> bytes:
    return data.decode("utf-8", "replace").encode(random.choice(CODECS), "replace")


BYTES = {
    "cut": lambda data, random: data[: random.randrange(len(data) + 1)],
    "cut front": lambda data, random: data[random.randrange(len(data) + 1) :],
    "flip": lambda data, random: bytes(byte ^ (1 << random.randrange(8)) if random.random() < 0.003 else byte for byte in data),
    "insert": lambda data, random: (lambda at: data[:at] + random.choice(PIECES) + data[at:])(random.randrange(len(data) + 1)),
    "drop": lambda data, random: (lambda at: data[:at] + data[at + random.randrange(9) :])(random.randrange(len(data) + 1)),
    "double": lambda data, random: data + data[random.randrange(len(data) + 1) :],
    "encoding": _encode_otherwise,
    "line ends": lambda data, random: b"".join(random.choice((b"\n", b"\r", b"\r\n")) if byte == 10 else bytes((byte,)) for byte in data),
}  # fmt: skip


def _spoil(kind: str, name: str, random: Random) -> bytes:
    rows, written = ROWS[name], None
    for _ in range(random.randrange(3)):
        spoilt = _replace_a_value(rows, random)
        try:
            written = KINDS[kind](spoilt)
        except (TypeError, ValueError, AttributeError, LookupError, OverflowError, pa.ArrowException):
            continue  # nobody can write such a file of this kind
        rows = spoilt
    data = written or KINDS[kind](rows)
    for _ in range(random.randrange(1, 4)):
        data = BYTES[random.choice(sorted(BYTES))](data, random)
    return data


def _read(path) -> tuple[int, list[InvalidRow]]:
    """Reads a file as prepare does: how many rows can be used, and why the others cannot."""
    form, good, bad, line = None, 0, [], 0
    for row in read_rows(path):
        assert row.line >= max(line, 1)
        line = row.line
        try:
            if row.value is None:
                raise InvalidRow(row.fault, row.code)
            if form is None:
                form = formats.detect(row.value)
                assert formats.evidence(row.value, form)
            formats.read(row.value, form).canonical()
            good += 1
        except InvalidRow as error:
            bad.append(error)
    return good, bad


def _check(error: InvalidRow | Unreadable) -> None:
    assert error.code in ROW_CODES
    words = str(error)
    assert 0 < len(words) < 400
    assert words.encode().decode().isprintable(), "fit to be shown, in one line"


@pytest.fixture(autouse=True)
def _small_rows(monkeypatch):
    """Rows of a few kilobytes are too large here, and blocks are small, so that each example meets their ends."""
    for module in (readers.lines, readers.arrays, readers.tables, readers.parquet):
        monkeypatch.setattr(module, "MAX_ROW_BYTES", 2000)
    for module in (readers.content, readers.arrays):
        monkeypatch.setattr(module, "BLOCK_BYTES", 100)


@pytest.mark.parametrize(("kind", "name"), GOOD)
def test_they_are_good_to_begin_with(tmp_path, kind, name):
    path = tmp_path / f"rows.{kind}"
    path.write_bytes(KINDS[kind](ROWS[name]))
    assert _read(path) == (len(SAID), [])


@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(good=st.sampled_from(GOOD), seed=st.integers(0, 2**32), named=st.booleans())
def test_spoilt_files_end_in_rows_and_reasons(tmp_path, good, seed, named):
    path = tmp_path / (f"rows.{good[0]}" if named else "rows")
    path.write_bytes(_spoil(*good, Random(seed)))
    try:
        _, bad = _read(path)
    except Unreadable as error:
        bad = [error]
    for error in bad:
        _check(error)
    assert all(error.line is None or error.line >= 1 for error in bad if isinstance(error, Unreadable))


def test_very_many_tiny_rows(tmp_path, monkeypatch):
    for module in (readers.content, readers.arrays):
        monkeypatch.setattr(module, "BLOCK_BYTES", 1 << 18)
    (tmp_path / "a.jsonl").write_bytes(b"{}\n" * 60_000)
    (tmp_path / "a.json").write_bytes(b"[" + b"{},\n" * 29_999 + b"1]")
    (tmp_path / "a.csv").write_bytes(b"text\n" + b"a\n" * 60_000)
    for name, count, code in (("a.jsonl", 60_000, None), ("a.json", 30_000, "InvalidJson"), ("a.csv", 60_000, None)):
        number, last = 0, None
        for number, last in enumerate(read_rows(tmp_path / name), 1):  # noqa: B007
            pass
        assert (number, last.line - (name == "a.csv"), last.code) == (count, count, code)
