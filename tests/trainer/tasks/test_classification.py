"""Classifiers: the loss is a row's, whatever rows share a batch and whoever finds the last token."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from finetune_trainer.tasks.choose import task_of
from finetune_trainer.tasks.classification import ClassificationTask

TEXTS = [[5, 9, 13, 17], [6], [20, 21, 22, 23, 24, 25, 26], [30, 31]]
ONE = [(text, [], label) for text, label in zip(TEXTS, [0, 2, 1, 2], strict=True)]
SEVERAL = [(text, [], labels) for text, labels in zip(TEXTS, [[0, 2], [], [1], [0, 1, 2]], strict=True)]
NAMES = ["a", "b", "c"]
CLASSIFIER = {"task": "sequence-classification", "labels": NAMES}


@pytest.fixture(params=["one", "several"])
def shards(request, make_shards):
    several = request.param == "several"
    return make_shards(**CLASSIFIER, multi_label=several, train=SEVERAL if several else ONE)


def test_rows_are_filled_up_and_bring_their_labels(make_shards):
    one = make_shards(**CLASSIFIER, train=ONE)
    task = task_of(one)
    assert isinstance(task, ClassificationTask)
    batch = task.collate(one.train, [0, 1])
    assert batch.inputs["input_ids"].tolist() == [[5, 9, 13, 17], [6, 0, 0, 0]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 0, 0, 0]]
    assert "token_type_ids" not in batch.inputs
    assert batch.labels.tolist() == [0, 2]
    assert task.weight(one.train, [0, 1, 2]) == 3
    several = make_shards(**CLASSIFIER, multi_label=True, train=SEVERAL)
    assert task_of(several).collate(several.train, [0, 1, 2]).labels.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]


def test_a_text_and_its_pair_are_told_apart_where_the_model_does(make_shards):
    shards = make_shards(**CLASSIFIER, segments=True, train=[([5, 6, 7], [8, 9], 0), ([5], [], 1)])
    batch = task_of(shards).collate(shards.train, [0, 1])
    assert batch.inputs["token_type_ids"].tolist() == [[0, 0, 0, 1, 1], [0] * 5]


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "bart", "t5"])
def test_the_loss_of_one_label_is_the_models_own_times_the_rows(make_shards, make_model, name):
    ended = [([*text, 1], [], label) for text, _, label in ONE]  # BART reads its answer at the end token
    shards = make_shards(**CLASSIFIER, train=ended)
    model, task = make_model(name, "sequence-classification", num_labels=3), task_of(shards)
    batch = task.collate(shards.train, [0, 1, 2, 3])
    own = model(**batch.inputs, labels=batch.labels).loss
    assert task.loss(model, batch).item() == pytest.approx(4 * own.item(), rel=1e-5)


def test_the_loss_of_several_labels_is_summed_over_them(make_shards, make_model):
    """transformers takes the mean over labels too."""
    shards = make_shards(**CLASSIFIER, multi_label=True, train=SEVERAL)
    model = make_model("bert", "sequence-classification", num_labels=3, problem_type="multi_label_classification")
    task = task_of(shards)
    batch = task.collate(shards.train, [0, 1, 2, 3])
    own = model(**batch.inputs, labels=batch.labels).loss
    assert task.loss(model, batch).item() == pytest.approx(4 * 3 * own.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["llama", "bert"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_batch_is_worth_its_rows(shards, make_model, name, smoothing):
    model, task = make_model(name, "sequence-classification", num_labels=3), task_of(shards)

    def loss(rows):
        return task.loss(model, task.collate(shards.train, rows), label_smoothing=smoothing).item()

    assert loss([0, 1, 2, 3]) == pytest.approx(sum(loss([row]) for row in range(4)), rel=1e-5)


def test_smoothing_by_hand(make_shards, make_model):
    model = make_model("llama", "sequence-classification", num_labels=3)
    one = make_shards(**CLASSIFIER, train=ONE)
    task, logits = task_of(one), torch.tensor([[2.0, -1.0, 0.5]])
    p = logits.softmax(-1)[0]
    batch = task.collate(one.train, [0])
    wanted = -(0.7 + 0.1) * p[0].log() - 0.1 * p[1].log() - 0.1 * p[2].log()
    assert task.loss_of(logits, batch, label_smoothing=0.3).item() == pytest.approx(wanted.item(), rel=1e-5)
    several = make_shards(**CLASSIFIER, multi_label=True, train=SEVERAL)
    task = task_of(several)
    q = logits.sigmoid()[0]
    wanted = sum(
        -(t * q[i].log() + (1 - t) * (1 - q[i]).log()) for i, t in enumerate([0.85, 0.15, 0.85])
    )  # labels a and c, smoothed by 0.3
    got = task.loss_of(logits, task.collate(several.train, [0]), label_smoothing=0.3)
    assert got.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert model.config.num_labels == 3


def test_a_filler_counts_nothing_and_its_gradients_are_there(shards, make_model):
    model, task = make_model("llama", "sequence-classification", num_labels=3), task_of(shards)
    loss = task.loss(model, task.collate(shards.train, [1], counted=False))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "method"),
    [("llama", "lora"), ("llama", "prompt"), ("gpt2", "prompt"), ("llama", "prefix"), ("bert", "prompt")],
)
def test_under_an_adapter_a_batch_is_worth_its_rows(shards, make_model, with_adapter, name, method):
    """Behind virtual tokens a decoder sees no pad tokens: its answer must still be read at a row's last token."""
    base = make_model(name, "sequence-classification", num_labels=3)
    model, task = with_adapter(base, method, "sequence-classification"), task_of(shards)

    def logits(rows):
        return task.logits(model, task.collate(shards.train, rows)).detach().numpy()

    together = logits([0, 1, 2, 3])
    np.testing.assert_allclose(together, np.concatenate([logits([row]) for row in range(4)]), rtol=2e-4, atol=2e-5)
    assert np.abs(together[:, None] - together[None]).max() > 1e-3, "rows differ"
    task.loss(model, task.collate(shards.train, [0, 1])).backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert all(grad is not None for grad in grads.values())
    assert any("score" in n or "classifier" in n for n in grads), "the head is trained"


def test_labels_are_read_from_logits(make_shards):
    one, several = make_shards(**CLASSIFIER, train=ONE), make_shards(**CLASSIFIER, multi_label=True, train=SEVERAL)
    logits = torch.tensor([[0.1, 3.0, -1.0], [-2.0, -0.1, -0.5]])
    assert task_of(one).predicted(logits) == [(1,), (1,)]
    assert task_of(several).predicted(logits) == [(0, 1), ()]
