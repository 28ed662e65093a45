"""Encoder-decoder models: the loss is the model's own, whatever rows share a batch."""

from __future__ import annotations

import pytest
import torch
from finetune_trainer.tasks.choose import task_of
from finetune_trainer.tasks.seq2seq import Seq2SeqTask

ROWS = [([5, 9, 13, 1], [7, 8, 1]), ([6, 1], [10, 11, 12, 13, 14, 1]), ([20, 21, 22, 23, 24, 25, 1], [30, 1])]


@pytest.fixture
def shards(make_shards):
    return make_shards(task="seq2seq-lm", train=ROWS)


def test_rows_come_apart_and_are_filled_up(shards):
    task = task_of(shards)
    assert isinstance(task, Seq2SeqTask)
    batch = task.collate(shards.train, [1, 2])
    assert batch.inputs["input_ids"].tolist() == [[6, 1, 0, 0, 0, 0, 0], [20, 21, 22, 23, 24, 25, 1]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 0, 0, 0, 0, 0], [1] * 7]
    assert batch.labels.tolist() == [[10, 11, 12, 13, 14, 1], [30, 1] + [-100] * 4]
    assert task.weight(shards.train, [0, 1, 2]) == 3 + 6 + 2


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_the_loss_is_the_models_own_times_the_tokens(shards, make_model, name):
    model, task = make_model(name, "seq2seq-lm"), task_of(shards)
    batch = task.collate(shards.train, [0, 1, 2])
    own = model(**batch.inputs, labels=batch.labels).loss
    assert task.loss(model, batch).item() == pytest.approx(own.item() * 11, rel=1e-5)


@pytest.mark.parametrize("name", ["t5", "bart"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_batch_is_worth_its_rows(shards, make_model, name, smoothing):
    model, task = make_model(name, "seq2seq-lm"), task_of(shards)

    def loss(rows):
        return task.loss(model, task.collate(shards.train, rows), label_smoothing=smoothing).item()

    assert loss([0, 1, 2]) == pytest.approx(sum(loss([row]) for row in range(3)), rel=1e-5)


def test_smoothing_takes_a_share_of_the_target_for_all_tokens(shards, make_model):
    model, task = make_model("t5", "seq2seq-lm"), task_of(shards)
    batch = task.collate(shards.train, [0])
    logits = model(**batch.inputs, labels=batch.labels).logits
    log_p = logits.log_softmax(-1)[0]
    wanted = sum(-0.9 * log_p[i, token] - 0.1 * log_p[i].mean() for i, token in enumerate([7, 8, 1]))
    assert task.loss(model, batch, label_smoothing=0.1).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_a_filler_counts_nothing_and_its_gradients_are_there(shards, make_model):
    model, task = make_model("t5", "seq2seq-lm"), task_of(shards)
    loss = task.loss(model, task.collate(shards.train, [1], counted=False))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("method", ["lora", "prompt", "prefix"])
def test_adapters_train_through_it_and_a_batch_is_worth_its_rows(shards, make_model, with_adapter, method):
    model, task = with_adapter(make_model("t5", "seq2seq-lm"), method, "seq2seq-lm"), task_of(shards)
    losses = [task.loss(model, task.collate(shards.train, rows)) for rows in ([0, 1, 2], [0], [1], [2])]
    assert losses[0].item() == pytest.approx(sum(loss.item() for loss in losses[1:]), rel=1e-5)
    losses[0].backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)
    base = make_model("t5", "seq2seq-lm")
    assert abs(task.loss(base, task.collate(shards.train, [0])).item() - losses[1].item()) > 1e-3


def test_it_looks_through_what_wraps_a_model(shards, make_model, with_adapter):
    class Wrapper(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *args, **kwargs):
            return self.module(*args, **kwargs)

    task = task_of(shards)
    batch = task.collate(shards.train, [0])
    model = with_adapter(make_model("t5", "seq2seq-lm"), "lora", "seq2seq-lm")
    assert task.loss(Wrapper(model), batch).item() == task.loss(model, batch).item()
