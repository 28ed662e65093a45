"""Numbers in sentences."""

from __future__ import annotations


def share(count: int, of: int) -> str:
    """`31%`, `3.1%`, `0.031%`."""
    percent = 100 * count / of if of else 0.0
    return f"{percent:.0f}%" if percent >= 9.95 else f"{percent:.2g}%"


def of_rows(count: int, of: int, one: str, several: str, what: str = "rows") -> str:
    """`3 of 1,000 rows (0.3%) repeat an earlier one`: the verb agrees with the count."""
    return f"{count:,} of {of:,} {what} ({share(count, of)}) {one if count == 1 else several}"
