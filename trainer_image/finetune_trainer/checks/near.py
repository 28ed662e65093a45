"""Rows that say almost the same: MinHash over shingles of about three words (Broder 1997), found by bands of hashes.

Kept of each row: 8 bands, 32 bytes, and the lowest bit of each of its 128 hashes, 16 bytes. Two rows whose shingles
have the Jaccard similarity J share a band with probability 1 - (1 - J^5)^8, which is 0.96 at J = 0.8; a pair counts
when at least 114 of the 128 bits are equal, of which (1 + J) / 2 are to be expected (Li and König 2010, b = 1).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import rensa
from finetune_api.checks import CheckCode

from finetune_trainer.checks.checker import Found, Seen
from finetune_trainer.checks.columns import Column
from finetune_trainer.checks.kept import Kept
from finetune_trainer.checks.row import TRAIN, Batch
from finetune_trainer.checks.same import leaked
from finetune_trainer.checks.wording import of_rows

_HASHES, _BANDS, _A_BAND, _ALIKE = 128, 8, 5, 114
_SEED = 42
FEWEST_SHINGLES = 8
"""Shorter rows are compared exactly only: of few words a single one decides."""


class NearIndex:
    """Sees rows in order, and tells at the end which are almost the same as an earlier one."""

    def __init__(self) -> None:
        self._bands = Column(np.uint32, _BANDS)
        self._bits = Column(np.uint64, 2)

    def see(self, batch: Batch) -> None:
        sizes = np.diff(batch.offsets.astype(np.int64))
        matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(batch.shingles, batch.offsets, _HASHES, _SEED)
        hashes = np.array(matrix.to_rows(), dtype=np.uint32)
        folded = hashes[:, : _BANDS * _A_BAND].reshape(-1, _BANDS, _A_BAND).astype(np.uint64)
        mixed = np.zeros(folded.shape[:2], dtype=np.uint64)
        for place in range(_A_BAND):
            mixed = (mixed ^ folded[:, :, place]) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
        bands = (mixed >> np.uint64(16)).astype(np.uint32) | np.uint32(1)
        bands[sizes < FEWEST_SHINGLES] = 0  # in no band
        self._bands.extend(bands)
        bits = np.packbits((hashes & 1).astype(np.uint8), axis=1)
        self._bits.extend(np.ascontiguousarray(bits).view(np.uint64))

    def pairs(self, part: np.ndarray, *, across: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Rows and for each an earlier one that says almost the same, both int64 and by the row's number.

        Within one part of the data (`part`: uint8 of shape [rows]); `across`: held-out rows, each with a row of train.
        """
        bits = self._bits.whole()
        alike = np.full(len(bits), -1, dtype=np.int64)
        for band in range(_BANDS):
            row, other = _candidates(self._bands.whole(band), part, across)
            open_ = alike[row] < 0
            row, other = row[open_], other[open_]
            equal = 128 - np.bitwise_count(bits[row] ^ bits[other]).sum(axis=1, dtype=np.int64)
            close = equal >= _ALIKE
            alike[row[close]] = other[close]
        rows = np.flatnonzero(alike >= 0)
        return rows, alike[rows]


def _candidates(band: np.ndarray, part: np.ndarray, across: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rows with an earlier one (or one of train) in their band: the first one there, and the one just before."""
    keys = band.astype(np.uint64)
    if not across:
        keys |= part.astype(np.uint64) << np.uint64(32)
    rows = np.flatnonzero(band)
    if across:  # rows of train come first within a band
        rows = np.concatenate([rows[part[rows] == TRAIN], rows[part[rows] != TRAIN]])
    order = rows[np.argsort(keys[rows], kind="stable")]
    if len(order) < 2:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    new = np.concatenate([[True], keys[order][1:] != keys[order][:-1]])
    first = order[np.flatnonzero(new)][np.cumsum(new) - 1]
    row, others = order[~new], (first[~new], np.concatenate([order[:1], order[:-1]])[~new])
    row, other = np.concatenate([row, row]), np.concatenate(others)
    if across:
        kept = (part[row] != TRAIN) & (part[other] == TRAIN)
        row, other = row[kept], other[kept]
    return row, other


class NearSame:
    """NearDuplicates and NearLeakage; rows that are exactly the same are not counted again."""

    codes: tuple[CheckCode, ...] = ("NearDuplicates", "NearLeakage")

    def __init__(self, kept: Kept) -> None:
        self._kept = kept
        self._index = NearIndex()

    def see(self, batch: Batch) -> None:
        self._index.see(batch)

    def found(self, seen: Seen) -> Iterable[Found]:
        part, content = self._kept.part, self._kept.content
        later, earlier = self._index.pairs(part)
        other = content[later] != content[earlier]
        later, earlier = later[other], earlier[other]
        if len(later):
            message = of_rows(len(later), seen.all_rows, "is", "are") + " almost the same as an earlier one"
            first = self._kept.beside(later, earlier, "is almost the same as", seen)
            yield Found("NearDuplicates", len(later), seen.all_rows, message, first)
        if (part != TRAIN).any():
            yield from self._leaks(part, seen)

    def _leaks(self, part: np.ndarray, seen: Seen) -> Iterable[Found]:
        """Almost the same words, or the same prompt with another answer."""
        held, exact, _ = leaked(self._kept)
        _, asked, asked_at = leaked(self._kept, prompts=True)
        near, near_at = self._index.pairs(part, across=True)
        rows, first = np.unique(np.concatenate([near, asked]), return_index=True)
        others = np.concatenate([near_at, asked_at])[first]
        fresh = ~np.isin(rows, exact)
        rows, others = rows[fresh], others[fresh]
        if len(rows):
            message = of_rows(len(rows), held, "is", "are", "rows of validation and test") + " almost the same in train"
            yield Found("NearLeakage", len(rows), held, message, self._kept.beside(rows, others, "is almost", seen))
