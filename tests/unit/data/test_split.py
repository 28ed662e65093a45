"""The split: exact shares, equal rows together, the same for the same rows and seed, wherever they stand."""

from __future__ import annotations

import numpy as np
from finetune_trainer.data.split import TEST, TRAIN, VALIDATION, assign, content_key
from hypothesis import given
from hypothesis import strategies as st

SHARES = st.sampled_from([0.0, 0.1, 0.2, 0.05])


def keys_of(rows: list[int], seed: int = 42) -> np.ndarray:
    return np.array([content_key(seed, str(row).encode()) for row in rows], dtype=np.uint64)


@given(
    rows=st.lists(st.integers(0, 30), min_size=1, max_size=120),
    validation=SHARES,
    test=SHARES,
    order=st.randoms(use_true_random=False),
)
def test_equal_rows_share_a_side_wherever_they_stand(rows, validation, test, order):
    split = assign(keys_of(rows), validation=validation, test=test).split
    sides = {row: {int(side) for r, side in zip(rows, split, strict=True) if r == row} for row in rows}
    assert all(len(side) == 1 for side in sides.values())
    assert (split == TRAIN).any(), "training never goes without"
    shuffled = list(rows)
    order.shuffle(shuffled)
    again = assign(keys_of(shuffled), validation=validation, test=test).split
    assert dict(zip(shuffled, again.tolist(), strict=True)) == {row: side for row, (side,) in sides.items()}


@given(count=st.integers(10, 400), validation=SHARES, test=SHARES, seed=st.integers(0, 2**31 - 1))
def test_shares_are_exact_for_different_rows(count, validation, test, seed):
    split = assign(keys_of(list(range(count)), seed), validation=validation, test=test).split
    for code, share in ((VALIDATION, validation), (TEST, test)):
        have, want = int((split == code).sum()), share * count
        assert abs(have - want) <= 0.5 or (have == 1 and 0 < want < 1)
        assert (have > 0) == (share > 0)


def test_a_row_that_is_added_moves_hardly_any_other():
    before = assign(keys_of(list(range(1000))), validation=0.1, test=0.1).split
    after = assign(keys_of(list(range(1001))), validation=0.1, test=0.1).split[:1000]
    assert (before != after).sum() <= 2


def test_another_seed_gives_another_split():
    one, two = (assign(keys_of(list(range(200)), seed), validation=0.1, test=0.1).split for seed in (1, 2))
    assert (one != two).any()


def test_small_data_says_what_it_got():
    tiny = assign(keys_of([1, 2, 3]), validation=0.1, test=0.1)
    assert sorted(tiny.split.tolist()) == [TRAIN, VALIDATION, TEST]
    assert len(tiny.notes) == 2
    assert "got one row all the same" in tiny.notes[0]
    alone = assign(keys_of([7, 7, 7]), validation=0.1, test=0.1)
    assert alone.split.tolist() == [TRAIN] * 3
    assert "it is empty" in alone.notes[0]


def test_a_row_that_fills_half_the_data_trains():
    rows = [0] * 500 + list(range(1, 501))
    split = assign(keys_of(rows), validation=0.1, test=0.1).split
    assert set(split[:500].tolist()) == {TRAIN}
    assert ((split == TEST).sum(), (split == VALIDATION).sum()) == (100, 100)
