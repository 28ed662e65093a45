"""What is measured of a model and told of it: language models, encoder-decoders and classifiers, on any number of ranks."""

from __future__ import annotations

import json
import math

import pytest
import torch
from finetune_api.compute import MICRO_BATCH_TOKENS
from finetune_api.evaluation import EvaluationSpec
from finetune_trainer.errors import Stopped
from finetune_trainer.evaluate import compare
from finetune_trainer.evaluate.measure import Measured, measure, wanted
from finetune_trainer.evaluate.nll import split_loss
from finetune_trainer.evaluate.validation import validate
from finetune_trainer.tasks.choose import task_of

TEXTS = [[5, 9, 13, 17], [6], [20, 21, 22, 23, 24, 25, 26], [30, 31], [7, 8, 7]]
PAIRS = [([*text, 1], [9 + i, 10 + i, 1]) for i, text in enumerate(TEXTS)]
ONE = [(text, [], label) for text, label in zip(TEXTS, [0, 2, 1, 2, 0], strict=True)]
SEVERAL = [(text, [], labels) for text, labels in zip(TEXTS, [[0, 2], [], [1], [0, 1, 2], [2]], strict=True)]
KINDS = {
    "causal": ("llama", {"task": "causal-lm"}, PAIRS),
    "seq2seq": ("t5", {"task": "seq2seq-lm"}, PAIRS),
    "one": ("llama", {"task": "sequence-classification", "labels": ["a", "b", "c"]}, ONE),
    "several": ("bert", {"task": "sequence-classification", "labels": ["a", "b", "c"], "multi_label": True}, SEVERAL),
}


class Names:
    """Stands for a tokenizer: `w5` is the text of token 5, and 0 and 1 are special."""

    def decode(self, ids, skip_special_tokens):
        assert skip_special_tokens
        return " ".join(f"w{token}" for token in ids if token > 1)


def ignore(*_) -> None:
    """No one is told."""


@pytest.fixture(params=KINDS)
def case(request, make_shards, make_model):
    """(kind, shards, model, task)"""
    name, facts, rows = KINDS[request.param]
    shards = make_shards(**facts, train=rows[:1], validation=rows, test=rows)
    changes = {"num_labels": 3} if shards.labels else {}
    return request.param, shards, make_model(name, shards.task, **changes), task_of(shards)


@pytest.fixture
def narrow(monkeypatch):
    """A row or two a batch."""
    monkeypatch.setitem(MICRO_BATCH_TOKENS, "cpu", 5)


def test_the_loss_is_that_of_all_rows_together(case, make_rank, narrow):
    _, shards, model, task = case
    rows = range(shards.test.rows)
    with torch.no_grad():
        whole = task.loss(model, task.collate(shards.test, rows)).item() / task.weight(shards.test, rows)
    measured = measure(
        make_rank(),
        model,
        shards,
        task,
        wanted(shards, EvaluationSpec(metrics=["loss"])),
        on_rows=ignore,
        on_token=ignore,
    )
    assert measured.loss == pytest.approx(whole, rel=1e-5)
    validated = validate(make_rank(), model, task, shards, None, on_batch=ignore, on_token=ignore)
    assert (validated.loss, validated.value) == (pytest.approx(whole, rel=1e-5), validated.loss)
    assert validated.tokens == task.weight(shards.validation, rows)
    assert not model.training


@pytest.mark.parametrize("world", [2, 3])
def test_every_rank_calls_the_model_as_often_and_no_row_counts_twice(case, make_rank, narrow, world):
    _, shards, model, task = case
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    counts, sums, weights = [], 0.0, 0
    whole = split_loss(make_rank(), model, task, shards.test, on_batch=ignore)
    for rank in range(world):
        calls.clear()
        part = split_loss(make_rank(rank, world), model, task, shards.test, on_batch=ignore)
        counts.append(len(calls))
        sums, weights = sums + part.loss * max(1, part.tokens), weights + part.tokens
    assert len(set(counts)) == 1
    assert counts[0] > 1
    assert weights == whole.tokens
    assert sums / weights == pytest.approx(whole.loss, rel=1e-5)


def test_rows_are_told_as_they_are_done_and_a_stop_ends_them(case, make_rank, narrow):
    _, shards, model, task = case
    told, rank = [], make_rank()
    split_loss(rank, model, task, shards.test, on_batch=told.append)
    assert told == sorted(told)
    assert told[-1] == 5
    rank.asked_to_stop = True
    with pytest.raises(Stopped, match="asked to stop while"):
        validate(rank, model, task, shards, "loss", on_batch=ignore, on_token=ignore)


@pytest.mark.parametrize("case", ["one", "several"], indirect=True)
def test_a_classifiers_metrics_and_samples(case, make_rank):
    kind, shards, model, task = case
    what = wanted(shards, EvaluationSpec())
    assert what.metrics == ("loss", "accuracy", "f1")
    assert (what.rows, what.samples) == ((), (0, 1, 2, 3, 4))
    told = []
    tuned = measure(make_rank(), model, shards, task, what, on_rows=told.append, on_token=ignore)
    assert sum(told) == 5
    assert Measured.from_json(json.loads(json.dumps(tuned.to_json()))) == tuned
    with torch.no_grad():
        logits = torch.cat([task.logits(model, task.collate(shards.test, [row])) for row in range(5)])
    assert [tuned.labels[row] for row in range(5)] == task.predicted(logits)
    right = Measured(0.25, {}, {row: shards.test.labels(row) for row in range(5)})
    table = compare.evaluation(shards, Names(), what, right, tuned)
    hits = sum(tuned.labels[row] == shards.test.labels(row) for row in range(5))
    assert table["metrics"][0] == {"metric": "loss", "base": tuned.loss, "tuned": 0.25}
    assert table["metrics"][1] == {"metric": "accuracy", "base": hits / 5, "tuned": 1.0}
    assert (table["metrics"][2]["metric"], table["metrics"][2]["tuned"]) == ("f1", 1.0)
    assert "generatedRows" not in table
    assert table["rows"] == 5
    sample = table["samples"][0]
    assert sample["prompt"] == "w5 w9 w13 w17"
    assert sample["reference"] == sample["tuned"] == ("a" if kind == "one" else "a, c")
    assert set(sample) == {"source", "prompt", "reference", "base", "tuned"}
    if kind == "several":
        assert table["samples"][1]["reference"] == "(no label)"
    assert any("classification head that training began with" in note for note in table["notes"])


def test_only_what_was_asked_of_a_classifier_is_told(make_shards):
    _, facts, rows = KINDS["one"]
    shards = make_shards(**facts, test=rows)
    what = wanted(shards, EvaluationSpec(metrics=["precision", "recall"], baseline=False))
    assert (what.loss, what.classes, what.whole_split) == (False, True, True)
    given_labels = [(0,), (2,), (2,), (2,), (1,)]
    tuned = Measured(0.5, {}, dict(enumerate(given_labels)))
    table = compare.evaluation(shards, Names(), what, tuned, None)
    # a: said 1 hit 1, had 2; b: said 1, had 1, hit 0; c: said 3 hit 2, had 2
    assert table["metrics"] == [
        {"metric": "precision", "tuned": pytest.approx((1 + 0 + 2 / 3) / 3)},
        {"metric": "recall", "tuned": pytest.approx((1 / 2 + 0 + 1) / 3)},
    ]
    assert not table["notes"]


def test_a_text_and_its_pair_are_both_shown(make_shards):
    facts = KINDS["one"][1]
    shards = make_shards(**facts, test=[([5, 6], [7, 8], 0)])
    what = wanted(shards, EvaluationSpec())
    [sample] = compare.evaluation(shards, Names(), what, Measured(1.0, {}, {0: (1,)}), None)["samples"]
    assert sample["prompt"] == "w5 w6\n\nw7 w8"


def test_a_loss_that_is_no_number_is_not_told(case, make_rank):
    _, shards, model, task = case
    with torch.no_grad():
        next(p for p in model.parameters() if p.dim() == 2).fill_(math.nan)
    what = wanted(shards, EvaluationSpec(metrics=["loss"]))
    measured = measure(make_rank(), model, shards, task, what, on_rows=ignore, on_token=ignore)
    assert measured.loss is None
    assert math.isnan(validate(make_rank(), model, task, shards, "loss", on_batch=ignore, on_token=ignore).value)


def test_references_that_are_cut_are_reported(make_shards):
    for test, note in (
        (
            [([5], [6, 1]), ([5], [7, 8])],
            "the answers of 1 of 2 rows are cut at data.maxLength, and so are their references",
        ),
        ([([5], [6, 1])], None),
    ):
        shards = make_shards(test=test)
        what = wanted(shards, EvaluationSpec())
        notes = compare.evaluation(shards, Names(), what, Measured(1.0, {row: [6] for row in what.rows}), None)["notes"]
        assert [line for line in notes if "maxLength" in line] == ([note] if note else [])


@pytest.mark.parametrize("tokenizer", [None, Names()])
def test_validation_by_exact_match_generates_and_compares(make_shards, make_model, make_rank, monkeypatch, tokenizer):
    """The references are what the model writes, but for one row."""
    from finetune_trainer.evaluate import validation
    from finetune_trainer.evaluate.generate import Greedy, answers

    model = make_model("llama", "causal-lm")
    probe = make_shards(validation=PAIRS)
    written = answers(
        make_rank(), model, probe.validation, range(5), Greedy(8, 0, (1,)), on_token=ignore, on_batch=ignore
    )
    rows = [(text, [*written[row], 1]) for row, (text, _) in enumerate(PAIRS)]
    rows[2] = (rows[2][0], [50, 1])
    shards = make_shards(validation=rows)

    def value():
        return validate(
            make_rank(),
            model,
            task_of(shards),
            shards,
            "exact-match",
            on_batch=ignore,
            on_token=ignore,
            tokenizer=tokenizer,
        ).value

    assert value() == 4 / 5
    monkeypatch.setattr(validation, "GENERATED_ROWS", 3)
    assert value() == 2 / 3, "the first, the third and the last"


@pytest.mark.parametrize("metric", ["accuracy", "f1", "precision", "recall"])
def test_validation_of_a_classifier(make_shards, make_model, make_rank, metric):
    from finetune_trainer.evaluate.scores import scores

    name, facts, rows = KINDS["one"]
    shards = make_shards(**facts, validation=rows)
    model, task = make_model(name, shards.task, num_labels=3), task_of(shards)
    got = validate(make_rank(), model, task, shards, metric, on_batch=ignore, on_token=ignore)
    with torch.no_grad():
        given_labels = task.predicted(task.logits(model, task.collate(shards.validation, range(5))))
    assert got.value == scores([shards.validation.labels(row) for row in range(5)], given_labels)[metric]


def test_validation_by_perplexity(make_shards, make_model, make_rank):
    shards = make_shards(validation=PAIRS)
    got = validate(
        make_rank(),
        make_model("llama", "causal-lm"),
        task_of(shards),
        shards,
        "perplexity",
        on_batch=ignore,
        on_token=ignore,
    )
    assert got.value == pytest.approx(math.exp(got.loss))


def test_the_base_of_a_classifier_has_the_head_that_training_began_with(
    make_shards, make_model, with_adapter, make_rank
):
    from finetune_trainer.evaluate.untouched import untouched

    _, facts, rows = KINDS["one"]
    shards = make_shards(**facts, test=rows)
    task, batch = task_of(shards), task_of(shards).collate(shards.test, [0, 1])
    base = make_model("llama", shards.task, num_labels=3)
    wanted_logits = task.logits(base, batch)
    for method in ("lora", "prompt", "prefix"):
        tuned = with_adapter(make_model("llama", shards.task, num_labels=3), method, shards.task)
        before = task.logits(tuned, batch)
        with untouched(tuned):
            torch.testing.assert_close(task.logits(tuned, batch), wanted_logits)
        torch.testing.assert_close(task.logits(tuned, batch), before)
        assert not torch.allclose(before, wanted_logits)
        assert all(p.requires_grad for n, p in tuned.named_parameters() if "modules_to_save" in n)
