"""From the rows of a step to micro-batches: which rank takes which rows, and how they are grouped. Pure arithmetic.

Every rank computes the same division from the same plan, so nothing is communicated. The token budget bounds the padded
size of a micro-batch; it never changes which rows a step takes, nor the loss.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

    from finetune_trainer.data.shards import Split

TOKEN_BUDGET = {"cpu": 4096, "cuda": 16384}
"""Padded tokens in one micro-batch, by device type."""


def divide(rows: np.ndarray, lengths: np.ndarray, ranks: int) -> list[np.ndarray]:
    """Rows of each rank, longest first: each row goes to the rank with the fewest tokens so far. Every row goes to exactly one."""
    order = rows[np.lexsort((rows, -lengths[rows]))]
    loads = [(0, 0, rank) for rank in range(ranks)]
    shares: list[list[int]] = [[] for _ in range(ranks)]
    for row in order.tolist():
        tokens, count, rank = heapq.heappop(loads)
        shares[rank].append(row)
        heapq.heappush(loads, (tokens + int(lengths[row]), count + 1, rank))
    return [np.array(share, dtype=np.int64) for share in shares]


def group(rows: np.ndarray, lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Consecutive groups of `rows` (longest first), each of at most `budget` padded tokens, or of one row if that is longer."""
    groups: list[list[int]] = []
    width = 0
    for row in rows.tolist():
        if not groups or (len(groups[-1]) + 1) * width > budget:
            groups.append([])
            width = int(lengths[row])
        groups[-1].append(row)
    return [np.array(part, dtype=np.int64) for part in groups]


def at_least(groups: list[np.ndarray], count: int, filler: int) -> list[tuple[np.ndarray, bool]]:
    """Split the largest groups until there are `count`; if rows run out, add the row `filler` with the flag False: it counts nothing.

    A rank whose peers take more micro-batches must take part in their reductions.
    """
    parts = list(groups)
    while len(parts) < count:
        largest = max(range(len(parts)), key=lambda i: len(parts[i]), default=None)
        if largest is None or len(parts[largest]) < 2:
            break
        half = (len(parts[largest]) + 1) // 2
        parts[largest : largest + 1] = [parts[largest][:half], parts[largest][half:]]
    real = [(part, True) for part in parts]
    return real + [(np.array([filler], dtype=np.int64), False)] * (count - len(real))


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows padded on the right. Causal models need no mask for that: no token sees the padding that follows it.

    `input_ids` [rows, width]; `keep` [k], the positions (the same for all rows) whose logits are needed; `labels`
    [rows, k], the token that follows each, or -100 where the loss does not count it.
    """

    input_ids: torch.Tensor
    keep: torch.Tensor
    labels: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        if device.type == "cpu":
            return self
        return Batch(*(t.pin_memory().to(device, non_blocking=True) for t in (self.input_ids, self.keep, self.labels)))


IGNORED = -100


def build(split: Split, rows: Sequence[int] | np.ndarray, *, pad: int, counted: bool = True) -> Batch:
    """The batch of some rows of a split. With `counted` False no token counts, but the forward runs all the same."""
    import torch

    tokens = [split.tokens(int(row)) for row in rows]
    masks = [split.mask(int(row)) for row in rows]
    width = max(len(row) for row in tokens)
    ids = np.full((len(tokens), width), pad, dtype=np.int64)
    labels = np.full((len(tokens), width), IGNORED, dtype=np.int64)  # column j holds the token at j + 1
    for i, (row, mask) in enumerate(zip(tokens, masks, strict=True)):
        ids[i, : len(row)] = row
        if counted:
            labels[i, : len(row) - 1][mask[1:]] = row[1:][mask[1:]]
    keep = np.flatnonzero((labels != IGNORED).any(axis=0))
    if not len(keep):
        keep = np.zeros(1, dtype=np.int64)
    return Batch(torch.from_numpy(ids), torch.from_numpy(keep), torch.from_numpy(np.ascontiguousarray(labels[:, keep])))


def trained_tokens(split: Split, rows: Sequence[int] | np.ndarray) -> int:
    """How many predictions the loss counts in these rows."""
    return sum(int(np.count_nonzero(split.mask(int(row))[1:])) for row in rows)
