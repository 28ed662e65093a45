"""Accuracy, and macro averages of precision, recall and F1, from the labels that rows have and were given.

A row with one label is the case of sets of one, so that the same lines serve both kinds of classifier.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

Labels = tuple[int, ...]
"""Numbers of a row's labels, sorted."""

SCORES = ("accuracy", "f1", "precision", "recall")


def scores(true: Sequence[Labels], given: Sequence[Labels]) -> dict[str, float]:
    """Of each of SCORES its value, 0 to 1. Both sequences are in the order of the rows, of which there is at least one.

    accuracy: share of rows whose labels were all given, and no other. The others are means over the labels that any row
    has or was given, each label counting alike; a quotient without a denominator is 0.
    """
    pairs = list(zip(map(set, true), map(set, given), strict=True))
    had = Counter(label for have, _ in pairs for label in have)
    said = Counter(label for _, got in pairs for label in got)
    hits = Counter(label for have, got in pairs for label in have & got)
    each = sorted(had | said)
    return {
        "accuracy": sum(have == got for have, got in pairs) / len(pairs),
        "f1": _mean([_ratio(2 * hits[label], had[label] + said[label]) for label in each]),
        "precision": _mean([_ratio(hits[label], said[label]) for label in each]),
        "recall": _mean([_ratio(hits[label], had[label]) for label in each]),
    }


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
