"""Numbers and sentences for people."""

from __future__ import annotations


def number(value: float) -> str:
    """1234567 -> 1,234,567."""
    return f"{value:,}"


def count(value: int, noun: str) -> str:
    """1 row, 2 rows."""
    return f"{number(value)} {noun}{'' if value == 1 else 's'}"


def figure(value: float) -> str:
    """Three digits that mean something: 0.0123, 4.57, 1,235."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def money(value: float) -> str:
    """1,234.50, in whatever currency the price was."""
    return f"{value:,.2f}" if value >= 0.01 or value == 0 else "less than 0.01"


def duration(seconds: float) -> str:
    """3m12s, as kubectl writes it: the two largest units."""
    left = max(0, round(seconds))
    parts: list[str] = []
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m"), (1, "s")):
        value, left = divmod(left, size)
        if value or (unit == "s" and not parts):
            parts.append(f"{value}{unit}")
        elif parts:
            break
    return "".join(parts[:2])


def bytes_size(value: float) -> str:
    """2.1 GB, in powers of 1000."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"


def advised(message: str, remedy: str | None) -> str:
    """What is wrong, and what to do if that is known."""
    return f"{message}; {remedy}" if remedy else message


def visible(text: str) -> str:
    """Text of others on one line, without anything that a terminal would obey."""
    return "".join(char if char.isprintable() else _SIGNS.get(char, "�") for char in text)


_SIGNS = {"\n": "⏎", "\t": "⇥", "\r": "␍", "\u00a0": "␣", "\u3000": "\u3000"}
