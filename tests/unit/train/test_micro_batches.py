"""Which rank takes which rows, and how they become micro-batches."""

from __future__ import annotations

import itertools

import numpy as np
from finetune_trainer.train.micro_batches import at_least, divide, group, pack
from hypothesis import given
from hypothesis import strategies as st

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=60).map(lambda values: np.array(values, dtype=np.int64))


@given(lengths=LENGTHS, ranks=st.integers(1, 9), data=st.data())
def test_every_row_goes_to_one_rank_and_loads_are_even(lengths: np.ndarray, ranks: int, data: st.DataObject) -> None:
    rows = np.array(data.draw(st.permutations(range(len(lengths)))), dtype=np.int64)
    shares = divide(rows, lengths, ranks)
    assert len(shares) == ranks
    assert sorted(np.concatenate(shares).tolist()) == sorted(rows.tolist())
    loads = [int(lengths[share].sum()) for share in shares]
    assert max(loads) - min(loads) <= int(lengths[rows].max())
    for share in shares:
        assert lengths[share].tolist() == sorted(lengths[share].tolist(), reverse=True)


@given(lengths=LENGTHS, ranks=st.integers(1, 5), data=st.data())
def test_the_order_of_rows_changes_nothing(lengths: np.ndarray, ranks: int, data: st.DataObject) -> None:
    rows = np.arange(len(lengths))
    shuffled = np.array(data.draw(st.permutations(rows.tolist())), dtype=np.int64)
    for one, other in zip(divide(rows, lengths, ranks), divide(shuffled, lengths, ranks), strict=True):
        assert one.tolist() == other.tolist()


@given(lengths=LENGTHS, budget=st.integers(1, 2000))
def test_groups_keep_the_budget_and_all_rows(lengths: np.ndarray, budget: int) -> None:
    rows = np.argsort(-lengths, kind="stable")
    groups = group(rows, lengths, budget)
    assert np.concatenate(groups).tolist() == rows.tolist()
    for part in groups:
        assert len(part) == 1 or len(part) * int(lengths[part].max()) <= budget
    for part, after in itertools.pairwise(groups):
        assert (len(part) + 1) * int(lengths[part[0]]) > budget, f"{after} could have been begun later"


@given(lengths=LENGTHS, budget=st.integers(1, 2000))
def test_packs_keep_the_budget_and_all_rows_and_none_is_empty(lengths: np.ndarray, budget: int) -> None:
    rows = np.argsort(-lengths, kind="stable")
    packs = pack(rows, lengths, budget)
    assert sorted(np.concatenate(packs).tolist()) == sorted(rows.tolist())
    for part in packs:
        assert len(part) == 1 or 0 < int(lengths[part].sum()) <= budget


@given(sizes=st.lists(st.integers(1, 6), max_size=6), count=st.integers(1, 20))
def test_a_rank_takes_as_many_micro_batches_as_it_must(sizes: list[int], count: int) -> None:
    rows = iter(range(100))
    groups = [np.array([next(rows) for _ in range(size)], dtype=np.int64) for size in sizes]
    parts = at_least(groups, count, filler=99)
    assert len(parts) == max(count, len(groups))
    counted = [row for part, real in parts if real for row in part.tolist()]
    assert counted == list(range(sum(sizes)))
    assert all(part.tolist() == [99] for part, real in parts if not real)
    if sum(sizes) >= count:
        assert all(real for _, real in parts), "no forward is wasted while there are rows to split"
