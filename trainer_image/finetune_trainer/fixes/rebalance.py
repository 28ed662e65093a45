"""Which training rows of a classifier are learnt from more than once, so that every label has as many as the most frequent one.

Made after the split, of its training side alone: a copy in validation or test would be measured on again and again, and
a rare row that is copied before the split could lie there only as copies of itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_SHOWN = 6


def copies(labels: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Rows to add, int64, ascending; a row that is wanted twice more is in it twice.

    `labels`, int64 of shape [rows], is each row's label; `keys`, uint64 of shape [rows], the split's seeded hashes of their
    contents (`split.content_key`), whose order decides which rows get one copy more than others. So the seed decides, not
    the order of the files.
    """
    distinct, counts = np.unique(labels, return_counts=True)
    added = []
    for label, count in zip(distinct, counts, strict=True):
        rows = np.flatnonzero(labels == label)
        whole, rest = divmod(int(counts.max()) - int(count), int(count))
        added.append(np.tile(rows, whole))
        added.append(rows[np.argsort(keys[rows], kind="stable")[:rest]])
    return np.sort(np.concatenate(added)).astype(np.int64) if added else np.empty(0, dtype=np.int64)


def sentence(labels: np.ndarray, added: np.ndarray, names: Sequence[str]) -> str:
    """What was done, for people. `names` by the numbers in `labels`."""
    before = np.bincount(labels, minlength=len(names))
    extra = np.bincount(labels[added], minlength=len(names))
    raised = [int(label) for label in np.argsort(-extra, kind="stable") if extra[label]]
    shown = [
        f"{names[label]} from {before[label]:,} to {before[label] + extra[label]:,} rows" for label in raised[:_SHOWN]
    ]
    if len(raised) > _SHOWN:
        shown.append(f"{len(raised) - _SHOWN} more labels")
    return f"{len(added):,} training rows are repeated: {', '.join(shown)}."
