"""Metrics of classifiers against values worked out by hand."""

from __future__ import annotations

import pytest
from finetune_trainer.evaluate.scores import SCORES, scores
from hypothesis import given
from hypothesis import strategies as st

GOLDEN = {
    # name: (labels that rows have, labels that they were given, accuracy, precision, recall, F1)
    # of a: 2 of 3 said, 2 of 2 had; of b: 1 of 1, 1 of 2
    "two classes": ("aabb", "aaba", 3 / 4, (2 / 3 + 1) / 2, (1 + 1 / 2) / 2, (4 / 5 + 2 / 3) / 2),
    # of a: 1/2, 1/2, 1/2; of b: 1/2, 1/2, 1/2; of c: 1, 1, 1
    "three classes": ("aabbc", "abbac", 3 / 5, 2 / 3, 2 / 3, 2 / 3),
    "all right": ("abc", "abc", 1.0, 1.0, 1.0, 1.0),
    "all wrong": ("aab", "bba", 0.0, 0.0, 0.0, 0.0),
    # one class is always said: a: 3/4, 1, 6/7; b: 0, 0, 0
    "only the commonest": ("aaab", "aaaa", 3 / 4, 3 / 8, 1 / 2, 3 / 7),
    # c is said and never had: a: 1, 1/2, 2/3; b: 1, 1, 1; c: 0, 0, 0
    "a class that no row has": ("aab", "acb", 2 / 3, 2 / 3, 1 / 2, 5 / 9),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_one_label_a_row(name):
    true, given_labels, accuracy, precision, recall, f1 = GOLDEN[name]
    got = scores([(ord(label),) for label in true], [(ord(label),) for label in given_labels])
    assert got == pytest.approx({"accuracy": accuracy, "precision": precision, "recall": recall, "f1": f1})
    assert tuple(got) == SCORES


def test_several_labels_a_row():
    """Rows: {0,1} said {0}; {1} said {1}; {} said {}; {0,2} said {0,1}.

    accuracy: 2 of 4 rows whole. Label 0: 2/2, 2/2, 1. Label 1: 1/2, 1/2, 1/2. Label 2: never said, had once: 0, 0, 0.
    """
    got = scores([(0, 1), (1,), (), (0, 2)], [(0,), (1,), (), (0, 1)])
    assert got == pytest.approx({"accuracy": 0.5, "precision": 0.5, "recall": 0.5, "f1": 0.5})


def test_without_any_label_there_is_nothing_to_average():
    assert scores([(), ()], [(), ()]) == {"accuracy": 1.0, "f1": 0.0, "precision": 0.0, "recall": 0.0}


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1))
def test_names_of_labels_and_order_of_rows_do_not_matter(rows):
    def of(pairs, shift=0):
        return scores([(have + shift,) for have, _ in pairs], [(got + shift,) for _, got in pairs])

    assert of(rows) == pytest.approx(of(rows[::-1], shift=7))
    assert all(0 <= value <= 1 for value in of(rows).values())
