"""What the evaluation comes to, in one sentence and a table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

Tone = Literal["better", "same", "worse", "unknown"]

_HIGHER_IS_BETTER = {"exact-match"}
_NAMES = {"exact-match": "Exact match", "loss": "Loss", "perplexity": "Perplexity"}
_CLEAR_DEVIATIONS, _CLEAR_SHARE = 1.96, 0.01
_ORDER = ("exact-match", "loss", "perplexity")


@dataclass(frozen=True, slots=True)
class Line:
    """One metric, ready to be read. `tone` compares tuned with base."""

    name: str
    base: str
    tuned: str
    change: str
    tone: Tone
    note: str


@dataclass(frozen=True, slots=True)
class Verdict:
    tone: Tone
    headline: str
    detail: str
    lines: tuple[Line, ...]


def judge(evaluation: dict[str, Any]) -> Verdict:
    """The verdict follows the first metric of exact match, loss, perplexity that clearly moved."""
    rows, generated = evaluation.get("rows") or 0, evaluation.get("generatedRows") or 0
    metrics = sorted(evaluation.get("metrics", ()), key=lambda row: _rank(row["metric"]))
    lines = tuple(_line(row, generated) for row in metrics)
    measured = [row for row in metrics if row.get("tuned") is not None]
    if not rows or not measured:
        return Verdict(
            "unknown", "Nothing was measured", "There were no test rows to measure the tuned model on.", lines
        )
    first = measured[0]
    if first.get("base") is None:
        headline = f"{_NAMES.get(first['metric'], first['metric'])} {show(first['metric'], first['tuned'])}"
        return Verdict(
            "unknown", headline, f"Measured on {rows:,} held-out rows; the base model was not measured.", lines
        )
    moved = next((row for row in measured if _tone(row, generated) in ("better", "worse")), None)
    tone = _tone(moved, generated) if moved else "same"
    headline = {
        "better": "The tuned model is better than its base",
        "worse": "The tuned model is worse than its base",
    }.get(tone, "The tuned model is not clearly better than its base")
    told = [first] if moved in (None, first) else [first, moved]
    detail = "; ".join(_movement(row) for row in told)
    counted = generated if first["metric"] == "exact-match" and generated else rows
    chance = ", which may be chance" if moved is None and _values(first)[0] != _values(first)[1] else ""
    return Verdict(tone, headline, f"{detail[:1].upper()}{detail[1:]} on {counted:,} held-out rows{chance}.", lines)


def _values(row: dict[str, Any]) -> tuple[str, str]:
    return show(row["metric"], row.get("base")), show(row["metric"], row.get("tuned"))


def _movement(row: dict[str, Any]) -> str:
    (base, tuned), name = _values(row), _NAMES.get(row["metric"], row["metric"]).lower()
    return f"{name} stayed at {base}" if base == tuned else f"{name} went from {base} to {tuned}"


def show(metric: str, value: float | None) -> str:
    if value is None:
        return "–"
    if metric == "exact-match":
        return f"{value:.1%}"
    if value != 0 and (abs(value) >= 100_000 or abs(value) < 0.0001):
        return f"{value:.2e}"
    return f"{value:,.4f}" if abs(value) < 10 else f"{value:,.2f}"


def _line(row: dict[str, Any], generated: int) -> Line:
    metric, base, tuned = row["metric"], row.get("base"), row.get("tuned")
    change = ""
    if base is not None and tuned is not None:
        if metric == "exact-match":
            change = f"{(tuned - base) * 100:+.1f} points"
        elif base:
            change = f"{(tuned - base) / base:+.1%}"
    if metric == "exact-match":
        counts = " → ".join(f"{round(value * generated):,}" for value in (base, tuned) if value is not None)
        note = f"{counts} of {generated:,} answers, generated greedily, equal the reference" if generated else ""
    else:
        note = {
            "loss": "mean negative log likelihood of an answer's tokens",
            "perplexity": "e to the power of the loss",
        }.get(metric, "")
    return Line(
        _NAMES.get(metric, metric),
        show(metric, base),
        show(metric, tuned),
        change.replace("-", "−"),
        _tone(row, generated),
        note,
    )


def _tone(row: dict[str, Any], generated: int) -> Tone:
    """Whether tuned differs from base by more than chance (exact match, 95%) or a hundredth (the others)."""
    base, tuned = row.get("base"), row.get("tuned")
    if base is None or tuned is None:
        return "unknown"
    if row["metric"] == "exact-match":
        spread = math.sqrt((base * (1 - base) + tuned * (1 - tuned)) / max(generated, 1))
        clear = abs(tuned - base) > _CLEAR_DEVIATIONS * spread
    else:
        clear = abs(tuned - base) > _CLEAR_SHARE * abs(base)
    if not clear or base == tuned:
        return "same"
    return "better" if (tuned > base) == (row["metric"] in _HIGHER_IS_BETTER) else "worse"


def _rank(metric: str) -> int:
    return _ORDER.index(metric) if metric in _ORDER else len(_ORDER)
