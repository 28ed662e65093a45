"""Which rows train, validate and test: decided by what a row says and a seed, so that equal rows are never parted."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

TRAIN, VALIDATION, TEST = 0, 1, 2


def content_key(seed: int, content: bytes) -> int:
    """64 bits of a seeded hash: the row's place on a line that is cut into the splits."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8, key=seed.to_bytes(8, "little")).digest(), "little")


@dataclass(frozen=True, slots=True)
class Assignment:
    """`split` is int8 of shape [rows]: TRAIN, VALIDATION or TEST. `notes` tell what was not as asked."""

    split: np.ndarray
    notes: tuple[str, ...] = ()


def assign(keys: np.ndarray, *, validation: float, test: float) -> Assignment:
    """Cut the rows, ordered by key, into test, validation and the rest. `keys` is uint64 of shape [rows].

    The cuts fall at the asked shares of the rows, to within one group of equal rows. A split that was asked for gets
    at least one row as long as training keeps one; when there are too few different rows, it stays empty and a note
    says so. A row that is added or left out moves only rows beside a cut.
    """
    distinct, group, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    which = np.full(len(distinct), TRAIN, dtype=np.int8)
    notes = []
    for code, name, share in ((TEST, "test", test), (VALIDATION, "validation", validation)):
        if share <= 0:
            continue
        wanted = share * len(keys)
        free = np.flatnonzero((which == TRAIN) & (sizes <= max(wanted, 1)))  # a row repeated very often trains
        take = int(np.searchsorted(np.cumsum(sizes[free]), wanted - 0.5)) + 1 if wanted >= 0.5 else 1
        take = min(take, len(free), int((which == TRAIN).sum()) - 1)
        if take < 1:
            notes.append(f"there are too few different rows for a {name} split: it is empty")
            continue
        if wanted < 0.5:
            notes.append(f"{share:.0%} of {len(keys)} rows is less than one: the {name} split got one row all the same")
        which[free[:take]] = code
    return Assignment(which[group], tuple(notes))
