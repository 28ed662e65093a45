"""What the evaluation comes to, in one sentence and a table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from finetune_api.evaluation import LOWER_IS_BETTER

Tone = Literal["better", "same", "worse", "unknown"]

_NAMES = {
    "exact-match": "Exact match",
    "accuracy": "Accuracy",
    "f1": "F1",
    "precision": "Precision",
    "recall": "Recall",
    "loss": "Loss",
    "perplexity": "Perplexity",
}
"""In the order in which the verdict asks them."""
_IN_A_SENTENCE = {"f1": "F1"}
_SHARES = ("exact-match", "accuracy", "f1", "precision", "recall")
"""Parts of one, shown as percentages."""
_NOTES = {
    "loss": "mean negative log likelihood of the expected answers",
    "perplexity": "e to the power of the loss",
    "f1": "mean over the labels of the harmonic mean of precision and recall",
    "precision": "mean over the labels: how many of those predicted are right",
    "recall": "mean over the labels: how many of those there are were found",
}
_CLEAR_DEVIATIONS, _CLEAR_SHARE = 1.96, 0.01


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
    """The verdict follows the first metric, in the order of their names above, that clearly moved."""
    rows, generated = evaluation.get("rows") or 0, evaluation.get("generatedRows") or 0
    metrics = sorted(evaluation.get("metrics", ()), key=lambda row: _rank(row["metric"]))
    counted = {row["metric"]: generated if row["metric"] == "exact-match" else rows for row in metrics}
    lines = tuple(_line(row, counted[row["metric"]]) for row in metrics)
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
    moved = next((row for row in measured if _tone(row, counted[row["metric"]]) in ("better", "worse")), None)
    tone = _tone(moved, counted[moved["metric"]]) if moved else "same"
    headline = {
        "better": "The tuned model is better than its base",
        "worse": "The tuned model is worse than its base",
    }.get(tone, "The tuned model is not clearly better than its base")
    told = [first] if moved in (None, first) else [first, moved]
    detail = "; ".join(_movement(row) for row in told)
    chance = ", which may be chance" if moved is None and _values(first)[0] != _values(first)[1] else ""
    return Verdict(
        tone,
        headline,
        f"{detail[:1].upper()}{detail[1:]} on {counted[first['metric']] or rows:,} held-out rows{chance}.",
        lines,
    )


def _values(row: dict[str, Any]) -> tuple[str, str]:
    return show(row["metric"], row.get("base")), show(row["metric"], row.get("tuned"))


def _movement(row: dict[str, Any]) -> str:
    (base, tuned), metric = _values(row), row["metric"]
    name = _IN_A_SENTENCE.get(metric) or _NAMES.get(metric, metric).lower()
    return f"{name} stayed at {base}" if base == tuned else f"{name} went from {base} to {tuned}"


def show(metric: str, value: float | None) -> str:
    if value is None:
        return "–"
    if metric in _SHARES:
        return f"{value:.1%}"
    if value != 0 and (abs(value) >= 100_000 or abs(value) < 0.0001):
        return f"{value:.2e}"
    return f"{value:,.4f}" if abs(value) < 10 else f"{value:,.2f}"


def _line(row: dict[str, Any], counted: int) -> Line:
    metric, base, tuned = row["metric"], row.get("base"), row.get("tuned")
    change = ""
    if base is not None and tuned is not None:
        if metric in _SHARES:
            change = f"{(tuned - base) * 100:+.1f} points"
        elif base:
            change = f"{(tuned - base) / base:+.1%}"
    note = _NOTES.get(metric, "")
    if metric in ("exact-match", "accuracy") and counted:
        counts = " → ".join(f"{round(value * counted):,}" for value in (base, tuned) if value is not None)
        what = "answers, generated greedily, equal the reference" if metric == "exact-match" else "rows are right"
        note = f"{counts} of {counted:,} {what}"
    return Line(
        _NAMES.get(metric, metric),
        show(metric, base),
        show(metric, tuned),
        change.replace("-", "−"),
        _tone(row, counted),
        note,
    )


def _tone(row: dict[str, Any], counted: int) -> Tone:
    """Whether tuned differs from base by more than chance (shares of `counted` rows, 95%) or a hundredth (the others)."""
    base, tuned = row.get("base"), row.get("tuned")
    if base is None or tuned is None:
        return "unknown"
    if row["metric"] in _SHARES:
        spread = math.sqrt((base * (1 - base) + tuned * (1 - tuned)) / max(counted, 1))
        clear = abs(tuned - base) > _CLEAR_DEVIATIONS * spread
    else:
        clear = abs(tuned - base) > _CLEAR_SHARE * abs(base)
    if not clear or base == tuned:
        return "same"
    return "better" if (tuned < base) == (row["metric"] in LOWER_IS_BETTER) else "worse"


def _rank(metric: str) -> int:
    return list(_NAMES).index(metric) if metric in _NAMES else len(_NAMES)
