"""Bins for the lengths of rows: fine enough to see, few enough to keep for millions of rows."""

from __future__ import annotations


def bin_width(length: int) -> int:
    """Width of the bin that a length of so many tokens falls into: 1 up to 32, then 16 bins an octave."""
    return 1 if length <= 32 else 1 << (length.bit_length() - 5)


def bin_start(length: int) -> int:
    return length // bin_width(length) * bin_width(length)
