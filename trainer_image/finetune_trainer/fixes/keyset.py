"""A set of 64-bit keys that costs 8 bytes a key and takes them in batches."""

from __future__ import annotations

import numpy as np


class KeySet:
    """Sorted runs, of which two are merged whenever the later one has grown as long as the one before it."""

    def __init__(self) -> None:
        self._runs: list[np.ndarray] = []

    def add(self, keys: np.ndarray) -> np.ndarray:
        """Add keys, uint64 of shape [n]; gives which of them are new, bool of shape [n]. Of equal ones the first is."""
        distinct, first = np.unique(keys, return_index=True)
        new = ~self._holds(distinct)
        fresh = np.zeros(len(keys), dtype=bool)
        fresh[first[new]] = True
        self._push(distinct[new])
        return fresh

    def _holds(self, keys: np.ndarray) -> np.ndarray:
        found = np.zeros(len(keys), dtype=bool)
        for run in self._runs:
            places = np.searchsorted(run, keys)
            places[places == len(run)] = 0
            found |= run[places] == keys
        return found

    def _push(self, run: np.ndarray) -> None:
        while len(run) and self._runs and len(self._runs[-1]) <= len(run):
            run = np.concatenate([self._runs.pop(), run])
            run.sort(kind="stable")  # two sorted halves: a merge
        if len(run):
            self._runs.append(run)
