"""The step plan: every row once an epoch, nothing dropped, the same for ever."""

from __future__ import annotations

import math

import pytest
from finetune_api.planner.steps import plan_steps
from finetune_trainer.data.stepplan import StepPlan, plan_key
from hypothesis import given
from hypothesis import strategies as st


@given(rows=st.integers(1, 300), batch=st.integers(1, 70), epochs=st.integers(1, 3), key=st.text(max_size=4))
def test_every_row_comes_once_an_epoch(rows, batch, epochs, key):
    steps = plan_steps(
        train_rows=rows, global_batch_size=batch, epochs=epochs, max_steps=None, checkpoint_every_steps=None
    ).steps
    plan = StepPlan(steps, rows, batch, key)
    assert steps == epochs * math.ceil(rows / batch)
    for epoch in range(epochs):
        taken = [plan.rows(step) for step in range(steps) if plan.epoch(step) == epoch]
        assert all(len(ids) == batch for ids in taken[:-1])
        assert sorted(id for ids in taken for id in ids.tolist()) == list(range(rows))


@given(rows=st.integers(1, 100), batch=st.integers(1, 30), steps=st.integers(1, 40))
def test_a_plan_cut_by_max_steps_is_a_prefix_of_the_longer_one(rows, batch, steps):
    long, short = StepPlan(steps + 7, rows, batch, "k"), StepPlan(steps, rows, batch, "k")
    assert all((long.rows(step) == short.rows(step)).all() for step in range(steps))
    with pytest.raises(IndexError):
        short.rows(steps)


def test_epochs_and_keys_give_different_orders():
    plan = StepPlan(20, 100, 10, "a")
    other = StepPlan(20, 100, 10, "b")
    first, second = ([plan.rows(step).tolist() for step in range(start, start + 10)] for start in (0, 10))
    assert first != second
    assert first != [other.rows(step).tolist() for step in range(10)]


def test_the_order_never_changes_between_versions():
    """A resumed job may run on a newer image: these ids are part of format 1."""
    key = plan_key(data_digest="d", seed=42, max_length=128, global_batch_size=4)
    assert key == "977e6a3d933af09675d7d2311a8f1ce3dc5e09f54ab5777ea32ea4de6f387752"
    plan = StepPlan(6, 10, 4, key)
    assert [plan.rows(step).tolist() for step in range(6)] == [
        [5, 3, 2, 0],
        [4, 9, 8, 7],
        [6, 1],
        [1, 2, 9, 4],
        [7, 5, 0, 6],
        [3, 8],
    ]


@pytest.mark.parametrize("changed", ["data_digest", "seed", "max_length", "global_batch_size"])
def test_the_key_depends_on_all_of_its_parts(changed):
    parts = {"data_digest": "d", "seed": 42, "max_length": 128, "global_batch_size": 4}
    assert plan_key(**parts) != plan_key(**(parts | {changed: "e" if changed == "data_digest" else 7}))


def test_a_plan_of_another_kind_is_refused():
    plan = StepPlan(6, 10, 4, "k")
    assert StepPlan.from_json(plan.to_json()) == plan
    with pytest.raises(ValueError, match="format 1"):
        StepPlan.from_json(plan.to_json() | {"kind": "weighted"})
