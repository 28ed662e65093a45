"""Numbers that are kept of every row, in columns: as many bytes a row as they have, and no object."""

from __future__ import annotations

import numpy as np

_CHUNK = 1 << 16


class Column:
    """Grows by chunks, so that nothing is copied until it is read as a whole."""

    def __init__(self, dtype: type[np.generic], width: int = 1) -> None:
        self._dtype, self._shape = dtype, (_CHUNK,) if width == 1 else (_CHUNK, width)
        self._chunks: list[np.ndarray] = []
        self._used = _CHUNK

    def extend(self, values: np.ndarray) -> None:
        """`values`: shape [rows] or [rows, width]."""
        while len(values):
            if self._used == _CHUNK:
                self._chunks.append(np.empty(self._shape, self._dtype))
                self._used = 0
            fitting = values[: _CHUNK - self._used]
            self._chunks[-1][self._used : self._used + len(fitting)] = fitting
            self._used += len(fitting)
            values = values[len(fitting) :]

    def whole(self, column: int | None = None) -> np.ndarray:
        """All rows: their number, or all `width` of them, or one of these."""
        if not self._chunks:
            return np.empty((0,) if column is not None else (0, *self._shape[1:]), self._dtype)
        chunks = [*self._chunks[:-1], self._chunks[-1][: self._used]]
        return np.concatenate(chunks if column is None else [chunk[:, column] for chunk in chunks])


def repeated(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose key an earlier row has, in order, and for each the first row with it. Both int64."""
    if not len(keys):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    new = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    first = order[np.flatnonzero(new)][np.cumsum(new) - 1]
    later, earlier = order[~new], first[~new]
    back = np.argsort(later, kind="stable")
    return later[back], earlier[back]
