"""Base beside tuned: the table of metrics and the samples, as `evaluation.json` holds them."""

from __future__ import annotations

import math
from typing import Any

from finetune_trainer.data.shards import Shards
from finetune_trainer.evaluate.measure import ROW_CAP, Measured, Wanted

_LARGEST_LOSS = 700.0  # exp of more is no float


def evaluation(shards: Shards, tokenizer: Any, what: Wanted, tuned: Measured, base: Measured | None) -> dict[str, Any]:
    """`{"rows", "generatedRows", "metrics": [{"metric", "base", "tuned"}], "samples": [...], "notes": [...]}`; absent values are left out."""
    test = shards.test
    texts = {row: _text(tokenizer, test.tokens(row)[test.prompt_length(row) :]) for row in what.rows}
    metrics = []
    for metric in what.metrics:
        line: dict[str, Any] = {"metric": metric}
        for name, measured in (("base", base), ("tuned", tuned)):
            value = _value(metric, measured, texts, tokenizer) if measured is not None else None
            if value is not None:
                line[name] = value
        metrics.append(line)
    samples = []
    for row in what.samples:
        sample = {
            "source": "{}:{}".format(*test.source(row)),
            "prompt": _text(tokenizer, test.tokens(row)[: test.prompt_length(row)]),
            "reference": texts[row],
        }
        for name, measured in (("base", base), ("tuned", tuned)):
            if measured is not None and row in measured.answers:
                sample[name] = _text(tokenizer, measured.answers[row])
        samples.append(sample)
    notes = []
    if what.exact_match and len(what.rows) == ROW_CAP < test.rows:
        notes.append(f"exact-match was measured on {ROW_CAP} of {test.rows} test rows, evenly spread")
    if not test.rows:
        notes.append("there is no test split, so nothing was measured")
    return {
        "rows": test.rows,
        **({"generatedRows": len(what.rows)} if what.exact_match else {}),
        "metrics": metrics,
        "samples": samples,
        "notes": notes,
    }


def _value(metric: str, measured: Measured, texts: dict[int, str], tokenizer: Any) -> float | None:
    if metric == "exact-match":
        if not measured.answers:
            return None
        hits = sum(_text(tokenizer, ids) == texts[row] for row, ids in measured.answers.items())
        return hits / len(measured.answers)
    if measured.loss is None:
        return None
    return measured.loss if metric == "loss" else math.exp(min(measured.loss, _LARGEST_LOSS))


def _text(tokenizer: Any, ids: Any) -> str:
    return tokenizer.decode([int(token) for token in ids], skip_special_tokens=True).strip()
