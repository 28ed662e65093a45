"""Prepare as a whole: what it leaves, what it refuses and in which words."""

from __future__ import annotations

import datetime
import gzip
import io
import json
import re
import shutil
import sys

import numpy as np
import pyarrow as pa
import pytest
import transformers
import zstandard
from finetune_api.contract import Progress
from finetune_trainer.data.tokenizer import load_tokenizer, settle
from finetune_trainer.errors import BadInput, StageError
from finetune_trainer.prepare import run
from finetune_trainer.progress import ProgressWriter
from finetune_trainer.stage import StageContext
from finetune_trainer.stop import StopFlag
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet


def talk(question: str, answer: str = "hello") -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def _parquet(columns: dict[str, list]) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pa.table(columns), sink)
    return sink.getvalue()


ROWS = [talk(f"the fox {number}") for number in range(40)]

FORMATS = {
    "messages": (talk("hello"), "assistant"),
    "prompt-completion": ({"prompt": "hello", "completion": " world"}, "completion"),
    "instruction": ({"instruction": "hello", "input": "fox", "output": "world"}, "completion"),
    "text": ({"text": "hello world"}, "all"),
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("layout", ["lines", "array", "pretty", "crlf", "bom", "folder"])
def test_every_format_in_every_layout(job, form, layout):
    row, loss_on = FORMATS[form]
    rows = [{**row, "id": number} for number in range(12)]
    lines = "\n".join(json.dumps(row) for row in rows)
    match layout:
        case "lines":
            uri = job.write("rows.jsonl", lines + "\n\n")
        case "array":
            uri = job.write("rows.json", json.dumps(rows))
        case "pretty":
            uri = job.write("rows.json", json.dumps(rows, indent=2))
        case "crlf":
            uri = job.write("rows.jsonl", lines.replace("\n", "\r\n"))
        case "bom":
            uri = job.write("rows.jsonl", b"\xef\xbb\xbf" + lines.encode())
        case "folder":
            job.write("many/b.ndjson", "\n".join(lines.splitlines()[6:]))
            job.write("many/a/a.jsonl", "\n".join(lines.splitlines()[:6]))
            job.write("many/.hidden/c.jsonl", "not a row")
            job.write("many/notes.txt", "not a row")
            uri = "pvc://datasets/many"
    data, plan, shards = job.prepare(uri)
    assert (data.rows, data.format, data.invalid_rows) == (12, form, 0)
    assert shards.resolved["loss_on"] == loss_on
    assert shards.train.rows == 12, "twelve equal rows are one group, and stay together"
    assert plan.steps == shards.plan().steps == 3
    texts = {shards.train.tokens(row).tobytes() for row in range(12)}
    assert len(texts) == 1
    file, line = shards.train.source(11)
    path = job.claims / file.removeprefix("pvc://")
    _, _, offset, length = shards.train.source_ids(11)
    raw = json.loads(path.read_bytes()[offset : offset + length])
    assert raw["id"] == 11
    assert json.dumps(raw["id"]) in "".join(
        path.read_text(encoding="utf-8-sig").splitlines()[line - 1 : line + (8 if layout == "pretty" else 0) + 8]
    )


def _table(rows):
    lines = ["instruction,input,output", *(f'"say\n{row}",fox,dog' for row in range(rows))]
    return "\n".join(lines).encode()


PACKED = {
    "rows.csv": (_table(12), lambda row: 2 * row + 2),
    "rows.csv.gz": (gzip.compress(_table(12)), lambda row: 2 * row + 2),
    "rows.jsonl.zst": (zstandard.compress(b"".join(b'{"text": "fox %d"}\n' % row for row in range(12))), lambda row: row + 1),
    "rows.parquet": (_parquet({"prompt": [f"fox {row}" for row in range(12)], "completion": ["dog"] * 12}), lambda row: row + 1),
}  # fmt: skip


@pytest.mark.parametrize("name", PACKED)
def test_tables_and_packed_files_are_prepared_with_their_lines(job, name):
    content, line_of = PACKED[name]
    data, _, shards = job.prepare(
        job.write(name, content), data={"split": {"train": 1.0, "validation": 0.0, "test": 0.0}}
    )
    assert (data.rows, data.invalid_rows, data.train_rows) == (12, 0, 12)
    assert [shards.train.source(row) for row in range(12)] == [
        (f"pvc://datasets/{name}", line_of(row)) for row in range(12)
    ]


def test_the_result_says_all_that_training_and_status_need(job):
    data, plan, shards = job.prepare(job.write("rows.jsonl", ROWS), training={"epochs": 2, "globalBatchSize": 5})
    assert (data.train_rows, data.validation_rows, data.test_rows) == (32, 4, 4)
    assert (plan.steps, plan.epochs, plan.global_batch_size) == (14, 2.0, 5)
    assert data.tokens == int(shards.train.lengths().sum())
    assert plan.tokens == 2 * data.tokens
    assert data.trained_tokens == sum(int(shards.train.mask(row).sum()) for row in range(32))
    assert (
        shards.resolved["max_length"]
        == data.max_length
        == max(int(split.lengths().max()) for split in (shards.train, shards.validation, shards.test))
    )
    answer = max(len(shards.test.tokens(row)) - shards.test.prompt_length(row) for row in range(4))
    assert shards.resolved["max_new_tokens"] == plan.max_new_tokens == answer + 8
    assert shards.tokenizer["eos"] in shards.tokenizer["stop"]
    assert shards.manifest["sources"] == ["pvc://datasets/rows.jsonl"]
    assert all(len(shards.manifest["digests"][name]) == 64 for name in ("data", "tokenizer", "template", "code"))


def test_max_steps_counts_the_tokens_of_its_own_rows(job):
    rows = [talk("fox " * (number % 7 + 1), f"dog {number}") for number in range(40)]
    _, plan, shards = job.prepare(job.write("rows.jsonl", rows), training={"maxSteps": 9, "globalBatchSize": 6})
    lengths = shards.train.lengths()
    assert plan.steps == 9
    assert plan.tokens == sum(int(lengths[shards.plan().rows(step)].sum()) for step in range(9))


def test_the_same_inputs_are_prepared_once(job):
    uri = job.write("rows.jsonl", ROWS)
    first, _, shards = job.prepare(uri)
    stamp = (shards.folder / "manifest.json").stat().st_mtime_ns
    again, _, shards = job.prepare(uri)
    assert again == first
    assert (shards.folder / "manifest.json").stat().st_mtime_ns == stamp
    (shards.folder / "train.tokens.i32").write_bytes(b"")
    job.prepare(uri)  # a damaged result is made again
    job.write("rows.jsonl", ROWS[:30])
    third, _, _ = job.prepare(uri)
    assert third.rows == 30


def test_named_lists_replace_their_fraction(job):
    train, test = job.write("train.jsonl", ROWS), job.write("test.jsonl", [talk("dog"), ROWS[0]])
    data, _, shards = job.prepare(train, data={"test": [{"uri": test}]})
    assert (data.train_rows, data.validation_rows, data.test_rows) == (36, 4, 2)
    assert shards.test.source(0) == (test, 1)
    assert any("1 of 2 rows of spec.data.test are also in spec.data.train" in note for note in shards.manifest["notes"])


@pytest.mark.parametrize("overlong", ["truncate", "drop"])
def test_rows_that_are_too_long(job, overlong):
    long_answer, long_prompt = talk("hello", "fox " * 60), talk("fox " * 60, "hello")
    uri = job.write("rows.jsonl", [*ROWS, long_answer, long_prompt])
    data, _, shards = job.prepare(uri, data={"maxLength": 40, "overlong": overlong})
    assert data.max_length <= 40
    kept = data.train_rows + data.validation_rows + data.test_rows
    if overlong == "drop":
        assert (data.truncated_rows, data.dropped_rows, kept) == (0, 2, 40)
    else:  # a row that keeps its whole prompt and no answer teaches nothing
        assert (data.truncated_rows, data.dropped_rows, kept) == (1, 1, 41)
    for split in (shards.train, shards.validation, shards.test):
        assert all(split.mask(row).any() for row in range(split.rows))


def test_the_longest_row_is_bounded_by_the_model(job):
    data, _, _ = job.prepare(job.write("rows.jsonl", [*ROWS, talk("hello", "fox " * 600)]))
    assert data.max_length == 256
    assert data.truncated_rows == 1


def test_bad_rows_are_left_out_within_the_limit_and_listed(job):
    rows = [*ROWS, {"messages": []}, talk("hello", "")]
    data, _, shards = job.prepare(job.write("rows.jsonl", rows), data={"checks": {"maxInvalidFraction": 0.1}})
    assert (data.rows, data.invalid_rows, data.train_rows) == (42, 2, 32)
    listed = [json.loads(line) for line in (shards.folder / "invalid.jsonl").read_text().splitlines()]
    assert [(row["line"], row["code"], row["reason"]) for row in listed] == [
        (41, "EmptyField", "messages is empty"),
        (42, "EmptyField", "messages[1].content is empty"),
    ]
    told = [{name: value for name, value in row.items() if name != "code"} for row in listed]
    assert shards.manifest["invalid"] == told


REFUSED_ROWS = {
    # name: (a line, the words)
    "not json": ('{"messages": [', "is not JSON: expecting value at character 15"),
    "plain text": ("hello there", "is not JSON"),
    "a number": ("17", "is a number, not an object"),
    "a list in lines": ('{"text": "a"}\n[1]', r"rows\.jsonl:2: is a list, not an object"),
    "unknown fields": ('{"question": "a", "answer": "b"}', r"is in no known format \(it has answer, question\): rename question to prompt and answer to completion"),
    "no output": ('{"instruction": "a"}', "has a field 'instruction' but no 'output'"),
    "no completion": ('{"prompt": "a"}', "has a field 'prompt' but no 'completion'"),
    "empty output": ('{"instruction": "a", "output": "  "}', "output is empty"),
    "empty messages": ('{"messages": []}', "messages is empty"),
    "no assistant": ('{"messages": [{"role": "user", "content": "a"}]}', "has no assistant turn"),
    "last not assistant": (json.dumps({"messages": [*talk("a")["messages"], {"role": "user", "content": "b"}]}), "the last turn is the user's"),
    "begins with assistant": ('{"messages": [{"role": "assistant", "content": "a"}]}', "begins with the assistant"),
    "late system": (json.dumps({"messages": [{"role": "user", "content": "b"}, {"role": "system", "content": "b"}, {"role": "assistant", "content": "b"}]}), r"messages\[1\] is a system turn"),
    "tool": ('{"messages": [{"role": "tool", "content": "a"}, {"role": "assistant", "content": "b"}]}', r"messages\[0\] is a tool's turn, but no call is before it"),
    "nobody": ('{"messages": [{"role": "oracle", "content": "a"}]}', r'messages\[0\]\.role is "oracle": use system, user, assistant or tool'),
    "no content": ('{"messages": [{"role": "user"}]}', r"messages\[0\] has no content"),
    "parts": ('{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', r'messages\[0\]\.content\[0\] is no text but "image_url"'),
    "messages is text": ('{"messages": "hello"}', "messages is not a list of turns"),
    "not a text": ('{"text": 5}', "text is 5, not a text"),
    "nul character": ('{"text": "a\\u0000b"}', "text holds a NUL character"),
    "nul byte": ('{"text": "a\0b"}', "holds NUL bytes"),
    "half a surrogate": ('{"text": "a\\ud800"}', "holds half of a surrogate pair at character 2"),
    "not utf-8": (b'{"text": "caf\xe9"}', "is not UTF-8"),
    "deep": ('{"text": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
    "huge number": ('{"text": ' + "9" * 5000 + "}", "is not usable JSON"),
    "mixed": ('{"text": "a"}\n{"prompt": "a", "completion": "b"}', r"rows\.jsonl:2: looks like prompt-completion \(by prompt and completion\), but text is read here"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_ROWS)
def test_a_bad_row_is_refused_in_one_sentence_with_file_and_line(job, name):
    line, words = REFUSED_ROWS[name]
    uri = job.write("rows.jsonl", line)
    with pytest.raises(BadInput, match=words) as caught:
        job.prepare(uri)
    message = str(caught.value)
    assert message.startswith(f"{uri}:")
    assert "\n" not in message
    assert (caught.value.cause.code, caught.value.exit_code) == ("InvalidData", 3)
    root = job.config(uri).layout.root
    assert not (root / "prepared").exists(), "nothing is left that could be taken for shards"
    assert (root / "invalid.jsonl").read_text().count("\n") >= 1


REFUSED_FILES = {
    "empty": ("rows.jsonl", b"", "is empty"),
    "only blanks": ("rows.jsonl", b"\n \n", "is empty"),
    "gzip": ("rows.jsonl", b"\x1f\x8b\x08\x00", "ends in the middle of its gzip data"),
    "parquet": ("rows.jsonl", b"PAR1....", "is no sound Parquet file"),
    "utf-16": ("rows.jsonl", "{}".encode("utf-16"), "is UTF-16 or UTF-32 text, not UTF-8"),
    "git lfs": ("rows.jsonl", b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer"),
    "one object": ("rows.json", json.dumps({"data": [1, 2]}, indent=1).encode(), "is one JSON object over several lines"),
    "cut array": ("rows.json", b'[{"text": "a"}, {"text": "b"', "closing ] is missing: the file was probably cut"),
    "cut string": ("rows.json", b'[{"text": "a', "a string is not closed"),
    "empty array": ("rows.json", b"[]", "holds no rows"),
    "double comma": ("rows.json", b'[{"text": "a"},,{"text": "b"}]', "a value is missing next to a comma"),
    "trailing": ("rows.json", b'[{"text": "a"}] {"text": "b"}', "something follows the array"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_FILES)
def test_a_bad_file_is_refused_in_one_sentence(job, name):
    file, content, words = REFUSED_FILES[name]
    with pytest.raises(BadInput, match=words) as caught:
        job.prepare(job.write(file, content))
    assert re.match(rf"pvc://datasets/{re.escape(file)}(:[1-9]\d*:)? ", str(caught.value))
    assert caught.value.cause.code == "InvalidData"


def test_the_first_bad_row_and_their_number_are_named(job):
    uri = job.write("rows.jsonl", [*ROWS[:6], {"messages": []}, {"x": 1}, *ROWS[6:]])
    with pytest.raises(
        BadInput, match=re.escape(f"{uri}:7: messages is empty (2 of 42 rows cannot be used)")
    ) as caught:
        job.prepare(uri)
    assert "invalid.jsonl" in caught.value.cause.remedy


def test_too_few_examples(job):
    uri = job.write("rows.jsonl", ROWS)
    with pytest.raises(
        BadInput, match=r"spec\.data\.checks\.minExamples asks for 1000 training examples, but there are 32"
    ):
        job.prepare(uri, data={"checks": {"minExamples": 1000}})
    with pytest.raises(BadInput, match="no row is left to train on: 40 rows were read, 0 invalid, 40 too long"):
        job.prepare(uri, data={"maxLength": 8, "overlong": "drop"})


def test_early_stopping_needs_rows_to_measure_on(job):
    uri = job.write("rows.jsonl", ROWS)
    with pytest.raises(BadInput, match=r"spec\.training\.earlyStopping: there are no validation rows") as caught:
        job.prepare(
            uri,
            data={"split": {"train": 0.9, "validation": 0.0, "test": 0.1}},
            training={"earlyStopping": {"patience": 2}},
        )
    assert caught.value.cause.code == "InvalidSpec"


def test_a_missing_file_says_what_is_there(job):
    job.write("support-2026.jsonl", ROWS)
    with pytest.raises(
        BadInput,
        match=r"spec\.data\.train\[0\]\.uri: pvc://datasets/support\.jsonl does not exist; pvc://datasets holds support-2026\.jsonl",
    ) as caught:
        job.prepare("pvc://datasets/support.jsonl")
    assert caught.value.cause.code == "NotFound"


def test_a_folder_without_data_is_named(job):
    (job.claims / "datasets" / "empty").mkdir()
    with pytest.raises(
        BadInput,
        match=r"spec\.data\.train\[0\]\.uri: pvc://datasets/empty holds no \.jsonl, .* file, plain or compressed",
    ):
        job.prepare("pvc://datasets/empty")


def _spoil(name: str, change):
    def act(job):
        path = job.model / name
        change(path)

    return act


def _edit(name: str, **values):
    return _spoil(name, lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), **values})))


BROKEN_MODELS = {
    "no folder": (lambda job: shutil.rmtree(job.model), r"pvc://models/base does not exist; pvc://models is empty", "NotFound"),
    "a file": (lambda job: (shutil.rmtree(job.model), job.model.write_text("x")), "is a file: name the folder", "InvalidModel"),
    "no config": (_spoil("config.json", lambda path: path.unlink()), "holds no config.json: it is not a model folder", "InvalidModel"),
    "bad config": (_spoil("config.json", lambda path: path.write_text("{")), "config.json is not JSON", "InvalidModel"),
    "unknown type": (_edit("config.json", model_type="foo"), "knows no model_type 'foo'", "InvalidModel"),
    "not of text": (_edit("config.json", model_type="vit"), "a vit model is neither a language model nor a classifier of text", "InvalidModel"),
    "bad value": (_edit("config.json", num_attention_heads="four"), "config.json: ", "InvalidModel"),
    "no weights": (_spoil("model.safetensors", lambda path: path.rename(path.with_name("pytorch_model.bin"))), "holds no model.safetensors, only pytorch_model.bin", "InvalidModel"),
    "cut weights": (_spoil("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-10])), "it was cut, copy it again", "InvalidModel"),
    "lfs weights": (_spoil("model.safetensors", lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1")), "is a Git LFS pointer", "InvalidModel"),
    "not weights": (_spoil("model.safetensors", lambda path: path.write_bytes(b"x" * 100)), "is no safetensors file", "InvalidModel"),
    "missing part": (_spoil("model.safetensors.index.json", lambda path: path.write_text('{"weight_map": {"a": "model-1.safetensors"}}')), "model-1.safetensors is missing, one of 1 weight files", "InvalidModel"),
    "no tokenizer": (_spoil("tokenizer.json", lambda path: path.unlink()), "tokenizer", "InvalidModel"),
    "bad tokenizer": (_spoil("tokenizer.json", lambda path: path.write_text("{}")), "no tokenizer could be read", "InvalidModel"),
    "foreign tokenizer": (_edit("config.json", vocab_size=20), "the model's vocabulary has 20: they do not belong together", "InvalidModel"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN_MODELS)
def test_a_model_that_cannot_be_tuned_is_refused_in_one_sentence(job, name):
    spoil, words, code = BROKEN_MODELS[name]
    uri = job.write("rows.jsonl", ROWS)
    spoil(job)
    with pytest.raises(BadInput, match=words) as caught:
        job.prepare(uri)
    assert str(caught.value).startswith("spec.model.uri: ")
    assert "\n" not in str(caught.value)
    assert caught.value.cause.code == code


@pytest.mark.parametrize("classifies", [False, True])
def test_a_pad_token_that_the_model_does_not_have_gives_way_to_the_end_token(job, classifies):
    vocabulary = json.loads((job.model / "config.json").read_text())["vocab_size"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(job.model)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == vocabulary
    tokenizer.save_pretrained(job.model)
    rows = [{"text": f"the fox {number}", "label": "xy"[number % 2]} for number in range(40)] if classifies else ROWS
    _, _, shards = job.prepare(job.write("rows.jsonl", rows))
    assert shards.tokenizer["pad"] == shards.tokenizer["eos"] < vocabulary
    words = f"The pad token is {vocabulary}, and the model has tokens below {vocabulary}: token '<|im_end|>' fills up short rows"
    assert any(note.startswith(words) for note in shards.manifest["notes"])
    tokenizer = load_tokenizer(job.model, field="spec.model.uri")
    settle(tokenizer, shards.task, vocabulary)
    assert tokenizer.pad_token_id == shards.tokenizer["pad"]


def test_an_end_token_that_is_missing_is_named(job):
    path = job.model / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token": None}))
    with pytest.raises(BadInput, match="names no eos_token"):
        job.prepare(job.write("rows.jsonl", ROWS))


def test_a_length_beyond_the_model_is_refused(job):
    with pytest.raises(BadInput, match=r"spec\.data\.maxLength: 512 is more than the 256 tokens") as caught:
        job.prepare(job.write("rows.jsonl", ROWS), data={"maxLength": 512})
    assert caught.value.cause.code == "InvalidSpec"


def test_the_model_is_built_only_where_its_files_leave_a_name_in_doubt(job, monkeypatch):
    asked = []
    monkeypatch.setattr("finetune_trainer.prepare.model._probe", lambda *question: asked.append(question))
    uri = job.write("rows.jsonl", ROWS)
    job.prepare(uri, method={"type": "lora", "lora": {"targetModules": ["q_proj", "mlp.up_proj"]}})
    assert not asked
    job.prepare(uri, method={"type": "lora", "lora": {"targetModules": ["q_proj", "query"]}})
    assert len(asked) == 1


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_virtual_tokens_take_their_place_in_the_context(job, method):
    uri = job.write("rows.jsonl", [*ROWS, talk("hello", "fox " * 600)])
    data, _, _ = job.prepare(uri, method={"type": method, "promptTuning": {"virtualTokens": 56}})
    assert data.max_length == 200
    with pytest.raises(
        BadInput, match="201 is more than the 200 tokens that the model can read beside 56 virtual ones"
    ):
        job.prepare(uri, method={"type": method, "promptTuning": {"virtualTokens": 56}}, data={"maxLength": 201})
    with pytest.raises(BadInput, match=r"spec\.method\.promptTuning\.virtualTokens: 250 leave no room") as caught:
        job.prepare(uri, method={"type": method, "promptTuning": {"virtualTokens": 250}})
    assert caught.value.cause.code == "InvalidSpec"


def test_positions_that_are_counted_from_the_pad_token_on_are_fewer(job):
    """RoBERTa's kin: of 40 positions the ids up to pad (2) and the next are never a token's."""
    config = {"model_type": "roberta", "architectures": ["RobertaForMaskedLM"], "vocab_size": 400, "hidden_size": 8,
              "num_attention_heads": 2, "num_hidden_layers": 1, "max_position_embeddings": 40, "pad_token_id": 2}  # fmt: skip
    (job.model / "config.json").write_text(json.dumps(config))
    rows = [{"text": "fox " * (number + 1), "label": number % 2} for number in range(60)]
    data, _, shards = job.prepare(job.write("rows.jsonl", rows))
    assert shards.tokenizer["pad"] == 2
    assert data.max_length == 40 - 3


def test_a_model_without_a_chat_template_gets_a_plain_one_and_says_so(job):
    (job.model / "chat_template.jinja").unlink()
    _, _, shards = job.prepare(job.write("rows.jsonl", ROWS))
    assert any("has no chat template" in note for note in shards.manifest["notes"])


def test_a_full_volume_is_said(job, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    with pytest.raises(
        BadInput, match=r"spec\.workspace\.uri: pvc://scratch has 1\.0 MiB free, but .* need about"
    ) as caught:
        job.prepare(job.write("rows.jsonl", ROWS))
    assert caught.value.cause.code == "StorageFull"


def test_an_output_that_is_taken_is_said_before_anything_is_computed(job):
    (job.claims / "models" / "out").mkdir()
    (job.claims / "models" / "out" / "theirs").write_text("x")
    with pytest.raises(BadInput, match=r"spec\.output\.uri: pvc://models/out already holds theirs"):
        job.prepare(job.write("rows.jsonl", ROWS))


def test_the_output_is_reserved_when_the_data_is_good(job):
    reserved = job.claims / "models" / ".finetune-reserved-out.json"
    with pytest.raises(BadInput):
        job.prepare(job.write("bad.jsonl", [{"prompt": "no completion"}]))
    job.prepare(job.write("rows.jsonl", ROWS), mode="Plan")
    assert not reserved.exists()
    for _ in range(2):
        job.prepare(job.write("rows.jsonl", ROWS))
        assert json.loads(reserved.read_text())["job"]["name"] == "job"
        reserved.unlink()
    reserved.write_text(reserved_by("another"))
    with pytest.raises(BadInput, match=r"is reserved since .* by job team-a/another") as caught:
        job.prepare(job.write("rows.jsonl", ROWS))
    assert caught.value.cause.code == "OutputTaken"


def reserved_by(name: str) -> str:
    job = {"namespace": "team-a", "name": name, "uid": "uid-9", "run": "abcde"}
    return json.dumps({"job": job, "since": datetime.datetime.now(datetime.UTC).isoformat()})


def test_a_second_run_of_the_stage_reports_everything_again(job, monkeypatch):
    """The operator runs it again when the first one's termination message was lost."""
    monkeypatch.setitem(sys.modules, "torch", sys.modules.get("torch"))  # the stage forbids it in its own process
    config = job.config(job.write("rows.jsonl", ROWS))
    reported = []
    for attempt in (1, 2):
        context = StageContext(
            config.model_copy(update={"attempt": attempt}),
            ProgressWriter(None, Progress(stage="prepare")), StopFlag(), job.claims,
        )  # fmt: skip
        run(context)
        assert context.known.keys() == {"data", "plan", "facts", "decided"}
        assert context.progress.state.percent == 100
        reported.append(context.known)
    assert reported[0] == reported[1]
    assert reported[1]["plan"].steps


def test_progress_goes_up_to_the_end(job):
    from finetune_trainer.prepare import prepare

    seen = []
    prepare(job.config(job.write("rows.jsonl", ROWS * 30)), lambda rows, percent: seen.append((rows, percent)))
    assert [percent for _, percent in seen] == sorted(percent for _, percent in seen)
    assert seen[-1][0] == 1200
    assert len(seen) > 3


LINE = json.dumps(talk("hello fox", "the lazy dog")).encode()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), array=st.booleans())
def test_mutated_files_never_give_a_traceback(job, data, array):
    whole = bytearray(b"[" + b",\n".join([LINE] * 5) + b"]" if array else b"\n".join([LINE] * 5))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "drop"])):
            case "flip":
                whole[at] ^= data.draw(st.integers(1, 255))
            case "cut":
                whole = whole[: at + 1]
            case "insert":
                whole[at:at] = data.draw(st.binary(min_size=1, max_size=8))
            case "drop":
                del whole[at : at + 3]
        if not whole:
            break
    uri = job.write("rows.jsonl", bytes(whole))
    try:
        outcome = job.prepare(uri, data={"checks": {"maxInvalidFraction": 0.9}})
    except StageError as error:
        outcome = error
    if isinstance(outcome, StageError):
        assert isinstance(outcome, BadInput)
        assert "\n" not in str(outcome)
        assert len(str(outcome)) < 500
    else:
        status, _, shards = outcome
        rows = shards.train.rows + shards.validation.rows + shards.test.rows
        assert status.rows - status.invalid_rows - status.dropped_rows == rows > 0
        assert np.all(shards.train.lengths() > 0)
