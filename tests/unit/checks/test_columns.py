"""What is kept of every row: columns that grow by chunks, equal keys, and rows that are almost the same."""

from __future__ import annotations

import random

import numpy as np
import pytest
from finetune_trainer.checks import columns
from finetune_trainer.checks.columns import Column, repeated
from finetune_trainer.checks.kept import where_in
from finetune_trainer.checks.near import NearIndex
from finetune_trainer.checks.row import Batch, Row
from finetune_trainer.data.formats import Example
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.checks.conftest import prose

FEW = st.lists(st.integers(0, 6), max_size=40)


@given(st.lists(FEW, max_size=6))
def test_a_column_holds_what_it_was_given(batches: list[list[int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "_CHUNK", 7)
        one, two = Column(np.uint64), Column(np.uint32, 2)
        for batch in batches:
            one.extend(np.array(batch, dtype=np.uint64))
            two.extend(np.array([(value, value + 1) for value in batch], dtype=np.uint32).reshape(-1, 2))
        given_ = [value for batch in batches for value in batch]
        assert one.whole().tolist() == given_
        assert two.whole(1).tolist() == [value + 1 for value in given_]
        assert two.whole().tolist() == [[value, value + 1] for value in given_]


@given(FEW)
def test_repeated_rows_and_their_first(keys: list[int]) -> None:
    later, earlier = repeated(np.array(keys, dtype=np.uint64))
    expected = [(row, keys.index(key)) for row, key in enumerate(keys) if keys.index(key) < row]
    assert list(zip(later.tolist(), earlier.tolist(), strict=True)) == expected


@given(FEW, FEW)
def test_where_in(sought: list[int], among: list[int]) -> None:
    found, first = where_in(np.array(sought, dtype=np.uint64), np.array(among, dtype=np.uint64))
    expected = [(row, among.index(key)) for row, key in enumerate(sought) if key in among]
    assert list(zip(found.tolist(), first.tolist(), strict=True)) == expected


def near(texts: list[str], parts: list[int] | None = None, *, across: bool = False, size: int = 256) -> dict[int, int]:
    index = NearIndex()
    rows = [Row(number, "train", 0, number, Example(completion=text)) for number, text in enumerate(texts)]
    for start in range(0, len(rows), size):
        index.see(Batch(rows[start : start + size]))
    part = np.array(parts or [0] * len(texts), dtype=np.uint8)
    return dict(zip(*(array.tolist() for array in index.pairs(part, across=across)), strict=True))


def changed(text: str, words: int, seed: int) -> str:
    chosen, parts = random.Random(seed), text.split()
    for place in chosen.sample(range(len(parts)), words):
        parts[place] = f"other{seed}"
    return " ".join(parts)


@pytest.mark.parametrize(
    ("words", "changes", "least", "most"),
    [(100, 1, 1.0, 1.0), (100, 2, 0.95, 1.0), (100, 30, 0.0, 0.0), (40, 1, 0.85, 1.0), (400, 4, 0.9, 1.0)],
)
def test_how_much_may_differ(words: int, changes: int, least: float, most: float) -> None:
    texts = [prose(words, ("near", words, number)) for number in range(100)]
    edited = [changed(text, changes, number) for number, text in enumerate(texts)]
    found = near([*texts, *edited])
    assert least <= len(found) / 100 <= most
    assert all(later - 100 == earlier for later, earlier in found.items())


HAN = (
    "".join(chr(0x4E00 + random.Random(5).randrange(3000) + number) for number in range(90)) + "，" + "船长慢慢走过桥去"
)

SAME_WORDS = {
    # name: two texts that are almost the same for people, whatever their bytes
    "case and punctuation": (prose(30, 1), prose(30, 1).upper().replace(" ", ", ")),
    "white space": (prose(30, 2), prose(30, 2).replace(" ", " \n\t ")),
    "no spaces": (HAN, HAN.replace("，", "。")),
    "one word in accents": (f"über café {prose(60, 3)}", f"über {prose(60, 3)}"),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME_WORDS)
def test_the_same_words(name: str) -> None:
    first, second = SAME_WORDS[name]
    assert near([prose(40, "x"), first, prose(40, "y"), second]) == {3: 1}


def test_short_and_empty_rows_are_not_near() -> None:
    assert near(["", "", "!!!", "yes", "yes", "no way", "no way", "\0", prose(5, 1), prose(5, 1)]) == {}


def test_a_row_is_compared_by_itself_whatever_stands_beside_it() -> None:
    """Batches are read as one string of bytes: their borders must not show."""
    texts = [prose(20 + number % 7, ("b", number)) for number in range(60)]
    twice = [*texts, *(changed(text, 1, 9) for text in texts)]
    assert near(twice, size=1) == near(twice, size=7) == near(twice, size=256)


def test_parts_and_across_them() -> None:
    text, other = prose(60, "p"), prose(60, "q")
    texts = [text, other, changed(text, 1, 1), changed(text, 1, 2), changed(other, 1, 3)]
    assert near(texts, [0, 0, 0, 1, 2]) == {2: 0}
    assert near(texts, [0, 0, 0, 1, 2], across=True) in ({3: 0, 4: 1}, {3: 2, 4: 1})
    assert near(texts[::-1], [2, 1, 0, 0, 0], across=True).keys() == {0, 1}, "held-out files may come first"
