"""Rows for classifiers: the labels, their order, and what is wrong with them, each in one sentence with file and line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from finetune_trainer import sealed
from finetune_trainer.data.encode_classes import ClassEncoder
from finetune_trainer.data.formats import Example
from finetune_trainer.data.labels import LabelSet
from finetune_trainer.data.shards import Shards, Split, SplitWriter
from finetune_trainer.errors import BadInput
from hypothesis import given, settings
from hypothesis import strategies as st

CLASSIFY = {"model": {"uri": "pvc://models/base", "task": "sequence-classification"}}
ALL_TRAIN = {"split": {"train": 1.0, "validation": 0.0, "test": 0.0}}


def rows_of(labels: list, field: str = "label") -> list[dict]:
    return [{"text": f"the fox {number}", field: label} for number, label in enumerate(labels)]


LABELS = {
    # name: (label of row i, their names in order)
    "texts": (lambda i: ["pos", "neg", "a b"][i % 3], ["a b", "neg", "pos"]),
    "numbers": (lambda i: [10, 9, 0][i % 3], ["0", "9", "10"]),
    "true or false": (lambda i: i % 2 == 0, ["false", "true"]),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_are_sorted_and_every_row_keeps_its_own(job, name):
    label_of, names = LABELS[name]
    data, plan, shards = job.prepare(job.write("rows.jsonl", rows_of([label_of(i) for i in range(20)])))
    assert (data.format, shards.task, shards.labels, shards.multi_label) == (
        "classification",
        "sequence-classification",
        names,
        False,
    )
    assert plan.max_new_tokens is None
    for split in (shards.train, shards.validation, shards.test):
        assert split.rows
        for row in range(split.rows):
            wanted = label_of(split.source(row).line - 1)
            [label] = split.labels(row)
            assert names[label] == (wanted if isinstance(wanted, str) else json.dumps(wanted))
            assert not split.mask(row).any(), "no token is learnt"
    counts = shards.train.label_counts()
    assert counts.sum() == shards.train.rows == data.train_rows
    assert any("recognised from the rows' fields text and label" in note for note in shards.manifest["notes"])
    assert any("task sequence-classification was decided" in note for note in shards.manifest["notes"])


def test_rows_may_have_several_labels_or_none(job):
    given_labels = [["b", "a"], [], ["c"], ["a", "a"], ["c", "b", "a"], []] * 3
    _, _, shards = job.prepare(job.write("rows.jsonl", rows_of(given_labels, "labels")), data=ALL_TRAIN)
    assert (shards.labels, shards.multi_label) == (["a", "b", "c"], True)
    for row in range(18):
        wanted = given_labels[shards.train.source(row).line - 1]
        assert [shards.labels[label] for label in shards.train.labels(row)] == sorted(set(wanted))
    assert shards.train.label_counts().tolist() == [9, 6, 6]


def test_a_label_is_no_content(job):
    """One text under two labels stays on one side of the split."""
    rows = [{"text": f"the fox {number // 2}", "label": str(number % 2)} for number in range(40)]
    _, _, shards = job.prepare(job.write("rows.jsonl", rows))
    where = {}
    for split in (shards.train, shards.validation, shards.test):
        for row in range(split.rows):
            where.setdefault((split.source(row).line - 1) // 2, set()).add(split.name)
    assert set(map(len, where.values())) == {1}


REFUSED = {
    # name: (rows of the file, line of the first bad one, its words)
    "mixed fields": ([{"text": "a", "label": "x"}, {"text": "b", "labels": ["x"]}], 2, "has a field 'labels', but the rows before it have 'label'"),
    "both fields": ([{"text": "a", "label": "x", "labels": ["x"]}], 1, "has both label and labels"),
    "mixed types": ([{"text": "a", "label": 1}, {"text": "b", "label": "1"}], 2, 'has the label "1", but those before it are numbers'),
    "true is no number": ([{"text": "a", "label": 1}, {"text": "b", "label": True}], 2, "has the label true, but those before it are numbers"),
    "a fraction": ([{"text": "a", "label": 0.5}], 1, "label is 0.5, not the name or number of a class: leave scores out"),
    "null": ([{"text": "a", "label": None}], 1, "label is null"),
    "negative": ([{"text": "a", "label": -1}], 1, "label is -1, and numbers of labels begin at 0"),
    "empty": ([{"text": "a", "label": " "}], 1, "label is empty"),
    "a list as label": ([{"text": "a", "label": ["x"]}], 1, "label is a list: name the field labels"),
    "no list as labels": ([{"text": "a", "labels": "x"}], 1, 'labels is "x", not a list'),
    "a list of lists": ([{"text": "a", "labels": [["x"]]}], 1, r"labels\[0\] is "),
    "no text": ([{"text": "", "label": "x"}], 1, "text is empty"),
    "pair": ([{"text": "a", "text_pair": 3, "label": "x"}], 1, "text_pair is 3, not a text"),
    "no label": ([{"text": "a", "label": "x"}, {"text": "b"}], 2, "has a field 'text' but no 'label or labels', which format classification needs"),
    "one class": ([{"text": "a", "label": "x"}, {"text": "b", "label": "x"}], 1, "every row has the label 'x', and a classifier needs two to tell apart"),
    "no class": ([{"text": "a", "labels": []}], 1, "no row has any label"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_with_labels_is_said_in_one_sentence(job, name):
    rows, line, words = REFUSED[name]
    uri = job.write("rows.jsonl", rows)
    with pytest.raises(BadInput, match=words) as caught:
        job.prepare(uri, data=ALL_TRAIN)
    assert str(caught.value).startswith(f"{uri}:{line}: ")
    assert "\n" not in str(caught.value)
    assert (caught.value.cause.code, caught.value.exit_code) == ("InvalidData", 3)


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_label_that_training_lacks_is_named(job, part):
    train = job.write("train.jsonl", rows_of(["x", "y"] * 5))
    other = job.write("other.jsonl", rows_of(["x", "z"]))
    with pytest.raises(
        BadInput, match=r'other\.jsonl:2: has the label "z", but those of the training rows are "x", "y": add'
    ):
        job.prepare(train, data={part: [{"uri": other}]})
    _, _, shards = job.prepare(train, data={part: [{"uri": other}], "checks": {"maxInvalidFraction": 0.5}, **ALL_TRAIN})
    assert getattr(shards, part).rows == 1
    assert shards.labels == ["x", "y"]


def test_a_long_validation_measures_a_part_of_its_rows(job):
    labels = [f"label {number % 7}" for number in range(1500)]
    validation = [{"uri": job.write("other.jsonl", rows_of(labels))}]
    train = job.write("train.jsonl", rows_of(labels[:21]))
    data, _, shards = job.prepare(train, data={"validation": validation, **ALL_TRAIN})
    split = shards.validation
    assert (data.validation_rows, split.rows) == (1500, 1000)
    lines = [split.source(row).line for row in range(split.rows)]
    assert (lines[0], lines[-1], len(set(lines))) == (1, 1500, 1000)
    assert [shards.labels[split.labels(row)[0]] for row in range(1000)] == [labels[line - 1] for line in lines]
    whole = Split(shards.folder, "validation", shards.manifest["sources"], labels=7)
    assert split.lengths().tolist() == [int(whole.lengths()[line - 1]) for line in lines]
    assert all((split.tokens(row) == whole.tokens(line - 1)).all() for row, line in enumerate(lines))
    assert split.label_counts().sum() == 1000
    assert any("measures 1,000 of the 1,500 validation rows" in note for note in shards.manifest["notes"])


def test_a_label_that_only_held_out_rows_have_is_said(job):
    rows = rows_of(["x", "y"] * 20 + ["rare"])
    for seed in range(40):
        _, _, shards = job.prepare(
            job.write("rows.jsonl", rows),
            data={"split": {"train": 0.5, "validation": 0.25, "test": 0.25, "seed": seed}},
        )
        rare = shards.labels.index("rare")
        said = any("No training row has the label rare" in note for note in shards.manifest["notes"])
        assert said == (not shards.train.label_counts()[rare])
        if said:
            return
    pytest.fail("the rare row never left training")


REFUSED_SPECS = {
    # name: (groups of the spec, rows, words)
    "language model": ({"model": {"uri": "pvc://models/base", "task": "causal-lm"}}, rows_of(["x", "y"]), "a language model learns text, not labels"),
    "classifier of chats": (CLASSIFY, [{"prompt": "a", "completion": "b"}], "a classifier learns labels"),
    "packing": ({"data": {"packing": True}}, rows_of(["x", "y"]), "only causal language models take packed rows"),
    "what is learnt": ({"data": {"lossOn": "all"}}, rows_of(["x", "y"]), "spec.data.lossOn has no meaning for spec.data.format classification"),
    "perplexity": ({"evaluation": {"metrics": ["perplexity"]}}, rows_of(["x", "y"]), "a classifier writes no text"),
    "accuracy": ({"evaluation": {"metrics": ["accuracy"]}}, [{"text": "a"}], "a language model has no labels"),
    "nothing to match": ({"training": {"earlyStopping": {"metric": "exact-match"}}}, [{"text": "a"}], "plain text has no answers to match"),
    "early stopping": ({"training": {"earlyStopping": {"metric": "f1"}}}, [{"text": "a"}], "a language model has no labels"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_SPECS)
def test_what_only_the_data_shows_cannot_go_together_is_refused(job, name):
    groups, rows, words = REFUSED_SPECS[name]
    with pytest.raises(BadInput, match=words) as caught:
        job.prepare(job.write("rows.jsonl", rows), **groups)
    assert str(caught.value).startswith("spec.")
    assert caught.value.cause.code == "InvalidSpec"
    assert "recognised from the rows as" in caught.value.cause.remedy


def test_a_text_that_is_too_long_loses_its_end_or_the_row_is_left_out(job):
    rows = [*rows_of(["x", "y"] * 10), {"text": "start " + "fox " * 300, "label": "x"}]
    uri = job.write("rows.jsonl", rows)
    data, _, shards = job.prepare(uri, data={"maxLength": 32, **ALL_TRAIN})
    assert (data.truncated_rows, data.dropped_rows, data.max_length) == (1, 0, 32)
    data, _, shards = job.prepare(uri, data={"maxLength": 32, "overlong": "drop", **ALL_TRAIN})
    assert (data.truncated_rows, data.dropped_rows, shards.train.rows) == (0, 1, 20)


def test_a_tokenizer_without_pad_says_what_takes_its_place(job):
    path = job.model / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token": None}))
    _, _, shards = job.prepare(job.write("rows.jsonl", rows_of(["x", "y"] * 10)))
    assert shards.tokenizer["pad"] == shards.tokenizer["eos"]
    assert any("has no pad token: token '<|im_end|>' fills up" in note for note in shards.manifest["notes"])


def test_truncation_keeps_what_the_tokenizer_puts_around_a_text_and_its_pair(make_tokenizer):
    from tokenizers import processors

    tokenizer = make_tokenizer(None)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B:1 </s>:1",
        special_tokens=[("<s>", 0), ("</s>", 1)],
    )
    alone, pair = Example(text="hello world " * 9, label="x"), Example(text="hello " * 9, pair="fox " * 30, label="x")
    for example in (alone, pair):
        encoder = ClassEncoder(tokenizer)  # transformers leaves truncation on
        [row] = encoder.encode([example])
        short = encoder.shortened(example, row, 12)
        assert len(short.ids) == 12 < len(row.ids)
        assert (short.ids[0], short.ids[-1]) == (0, 1)
        again = tokenizer(example.text, example.pair, truncation=True, max_length=12)
        assert short.ids.tolist() == again.input_ids
    assert tokenizer.decode(row.ids[: row.prompt_length]) == "<s>" + "hello " * 9 + "</s>"
    [row] = ClassEncoder(tokenizer).encode([alone])
    assert row.prompt_length == len(row.ids), "there is no pair"


def test_an_encoder_decoder_reads_its_answer_at_the_only_end_token(make_tokenizer):
    tokenizer = make_tokenizer(None, adds_eos=True)
    encoder = ClassEncoder(tokenizer, read_at=tokenizer.eos_token_id)
    good, bad = encoder.encode([Example(text="hello", label="x"), Example(text="hello</s> fox", label="x")])
    assert good.ids[-1] == tokenizer.eos_token_id
    assert bad.startswith("has the model's end token 2 times")


@settings(max_examples=40, deadline=None)
@given(
    several=st.booleans(),
    labels=st.integers(1, 20),
    data=st.data(),
)
def test_labels_come_back_as_written(tmp_path_factory, several, labels, data):
    folder = tmp_path_factory.mktemp("split")
    numbers = st.integers(0, labels - 1)
    rows = data.draw(st.lists(st.sets(numbers) if several else numbers, max_size=12))
    with SplitWriter(folder, "train", labels="several" if several else "one") as writer:
        for row in rows:
            label = np.isin(np.arange(labels), list(row)) if several else row
            writer.append([3, 4], [False, False], prompt_length=2, source=(0, 1, 0, 1), label=label)
    split = Split(folder, "train", ["f"], labels=labels)
    assert [split.labels(i) for i in range(len(rows))] == [tuple(sorted(row)) if several else (row,) for row in rows]
    flat = [label for row in rows for label in (row if several else [row])]
    assert split.label_counts().tolist() == np.bincount(np.array(flat, dtype=int), minlength=labels).tolist()


def test_labels_that_cannot_be_right_are_found(tmp_path):
    with SplitWriter(tmp_path, "train", labels="one") as writer:
        for label in (0, 5):
            writer.append([3], [False], prompt_length=1, source=(0, 1, 0, 1), label=label)
        with pytest.raises(ValueError):
            writer.append([3], [False], prompt_length=1, source=(0, 1, 0, 1))
    assert Split(tmp_path, "train", [], labels=6).labels(1) == (5,)
    with pytest.raises(sealed.Torn, match="a label that is none of 5"):
        Split(tmp_path, "train", [], labels=5)
    path = tmp_path / "train.labels.i32"
    path.write_bytes(path.read_bytes()[:4])
    with pytest.raises(sealed.Torn, match="no label for each of its rows"):
        Split(tmp_path, "train", [], labels=6)
    path.unlink()
    with pytest.raises(sealed.Torn, match="no label for each"):
        Split(tmp_path, "train", [], labels=6)


def test_a_manifest_without_a_task_is_a_language_model(job):
    _, _, shards = job.prepare(job.write("rows.jsonl", [{"text": f"fox {i}"} for i in range(10)]))
    old = {**shards.manifest, "resolved": {k: v for k, v in shards.resolved.items() if k != "task"}}
    assert (Shards(shards.folder, old).task, Shards(shards.folder, old).labels) == ("causal-lm", [])


def test_numbers_of_labels_are_given_in_order_of_appearance():
    labels = LabelSet()
    assert [labels.add(label, learn=True) for label in ("b", "a", "b")] == [(0,), (1,), (0,)]
    assert labels.names() == ["a", "b"]
    assert labels.order().tolist() == [1, 0]
