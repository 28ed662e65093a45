"""Randomness as a function of where it is used, so that a resumed run needs no generator's state."""

from __future__ import annotations


def mixed(seed: int, *parts: int) -> int:
    """A seed for this place alone, such as (seed, step, rank). 63 bits."""
    value = 0
    for part in (seed, *parts):
        value = (value ^ part) * 0x9E3779B97F4A7C15 % 2**63
        value ^= value >> 29
    return value
