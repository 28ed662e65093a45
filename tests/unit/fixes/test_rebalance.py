"""Rare labels get as many rows as the most frequent one, by copies that the seed alone decides."""

from __future__ import annotations

import numpy as np
from finetune_trainer.fixes import rebalance
from hypothesis import given
from hypothesis import strategies as st


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=60), seed=st.integers(0, 99))
def test_all_labels_have_as_many_rows_as_the_most_frequent(labels, seed):
    rows = np.array(labels)
    rng = np.random.default_rng(seed)
    keys = rng.permutation(len(rows)).astype(np.uint64)
    added = rebalance.copies(rows, keys)
    counts = np.bincount(np.concatenate([rows, rows[added]]))
    assert {*counts[counts > 0]} == {np.bincount(rows).max()}
    for label in set(labels):
        times = np.bincount(added, minlength=len(rows))[rows == label]
        assert times.max() - times.min() <= 1, "no row more often than another of its label by two"
    order = rng.permutation(len(rows))  # the same rows in other files
    again = rebalance.copies(rows[order], keys[order])
    assert np.array_equal(np.sort(order[again]), added)


def test_the_sentence_says_which_labels_grew():
    labels = np.array([0, 0, 0, 0, 1, 2, 2])
    added = rebalance.copies(labels, np.arange(7, dtype=np.uint64))
    assert added.tolist() == [4, 4, 4, 5, 6]
    assert rebalance.sentence(labels, added, ["big", "one", "two"]) == (
        "5 training rows are repeated: one from 1 to 4 rows, two from 2 to 4 rows."
    )
