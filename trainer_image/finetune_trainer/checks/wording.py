"""Numbers in sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping


def of_kinds(counts: Counter[str], names: Mapping[str, str]) -> str:
    """`e-mail addresses 3, card numbers 1`: the most frequent first."""
    ordered = sorted(counts.items(), key=lambda kind: (-kind[1], kind[0]))
    return ", ".join(f"{names[kind]} {count:,}" for kind, count in ordered)


def share(count: int, of: int) -> str:
    """`31%`, `3.1%`, `0.031%`."""
    percent = 100 * count / of if of else 0.0
    return f"{percent:.0f}%" if percent >= 9.95 else f"{percent:.2g}%"


def of_rows(count: int, of: int, one: str, several: str, what: str = "rows") -> str:
    """`3 of 1,000 rows (0.3%) repeat an earlier one`: the verb agrees with the count."""
    return f"{count:,} of {of:,} {what} ({share(count, of)}) {one if count == 1 else several}"
