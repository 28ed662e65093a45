"""From the rows of a step to micro-batches: which rank takes which rows, and how they are grouped. Pure arithmetic.

Every rank computes the same division from the same plan, so nothing is communicated. The token budget bounds the padded
size of a micro-batch; it never changes which rows a step takes, nor the loss.
"""

from __future__ import annotations

import heapq

import numpy as np


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


def pack(rows: np.ndarray, lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Groups of `rows` (longest first) with at most `budget` tokens in sum, or of one row if that is longer: as few as can be, of even sums."""
    if not len(rows):
        return []
    count = max(1, -(-int(lengths[rows].sum()) // budget))
    while True:  # as many packs as rows always fit
        packs = divide(rows, lengths, count)
        if all(len(part) == 1 or int(lengths[part].sum()) <= budget for part in packs):
            return [part for part in packs if len(part)]  # a row longer than the budget leaves others without any
        count += 1


def cut(rows: np.ndarray, lengths: np.ndarray, budget: int, *, packed: bool) -> list[np.ndarray]:
    """Micro-batches of one rank's rows (longest first), for a task that packs or one that pads."""
    return (pack if packed else group)(rows, lengths, budget)


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
