"""What the evaluation comes to, in one sentence and a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Tone = Literal["better", "same", "worse", "unknown"]

_HIGHER_IS_BETTER = {"exact-match"}
_NAMES = {"exact-match": "Exact match", "loss": "Loss", "perplexity": "Perplexity"}
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
    """The verdict follows the first metric of: exact match, loss, perplexity."""
    rows, generated = evaluation.get("rows") or 0, evaluation.get("generatedRows") or 0
    metrics = sorted(evaluation.get("metrics", ()), key=lambda row: _rank(row["metric"]))
    lines = tuple(_line(row, rows, generated) for row in metrics)
    if not rows or not any(row.get("tuned") is not None for row in metrics):
        return Verdict(
            "unknown", "Nothing was measured", "There were no test rows to measure the tuned model on.", lines
        )
    main = next(row for row in metrics if row.get("tuned") is not None)
    name = _NAMES.get(main["metric"], main["metric"])
    tuned = show(main["metric"], main["tuned"])
    if main.get("base") is None:
        return Verdict(
            "unknown", f"{name} {tuned}", f"Measured on {rows:,} held-out rows; the base model was not measured.", lines
        )
    tone, base = _tone(main), show(main["metric"], main["base"])
    headline = {
        "better": "The tuned model is better than its base",
        "same": "The tuned model is no better than its base",
        "worse": "The tuned model is worse than its base",
    }[tone]
    moved = f"stayed at {base}" if base == tuned else f"went from {base} to {tuned}"
    counted = generated if main["metric"] == "exact-match" and generated else rows
    return Verdict(tone, headline, f"{name} {moved} on {counted:,} held-out rows.", lines)


def show(metric: str, value: float | None) -> str:
    if value is None:
        return "–"
    if metric == "exact-match":
        return f"{value:.1%}"
    if value != 0 and (abs(value) >= 100_000 or abs(value) < 0.0001):
        return f"{value:.2e}"
    return f"{value:,.4f}" if abs(value) < 10 else f"{value:,.2f}"


def _line(row: dict[str, Any], rows: int, generated: int) -> Line:
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
        _NAMES.get(metric, metric), show(metric, base), show(metric, tuned), change.replace("-", "−"), _tone(row), note
    )


def _tone(row: dict[str, Any]) -> Tone:
    base, tuned = row.get("base"), row.get("tuned")
    if base is None or tuned is None:
        return "unknown"
    if show(row["metric"], base) == show(row["metric"], tuned):
        return "same"
    return "better" if (tuned > base) == (row["metric"] in _HIGHER_IS_BETTER) else "worse"


def _rank(metric: str) -> int:
    return _ORDER.index(metric) if metric in _ORDER else len(_ORDER)
