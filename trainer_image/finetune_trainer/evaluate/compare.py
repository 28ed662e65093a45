"""Base beside tuned: the table of metrics and the samples, as `evaluation.json` holds them."""

from __future__ import annotations

from typing import Any

from finetune_trainer.data.shards import Shards
from finetune_trainer.evaluate.measure import ROW_CAP, Measured, Wanted
from finetune_trainer.evaluate.nll import perplexity
from finetune_trainer.evaluate.scores import Labels, scores

NO_LABEL = "(no label)"


def evaluation(shards: Shards, tokenizer: Any, what: Wanted, tuned: Measured, base: Measured | None) -> dict[str, Any]:
    """`{"rows", "generatedRows", "metrics": [{"metric", "base", "tuned"}], "samples": [...], "notes": [...]}`; absent values are left out.

    A sample is `{"source", "prompt", "reference", "base", "tuned"}`, all texts: of a classifier its prompt is the text,
    and the others are labels.
    """
    both = {name: measured for name, measured in (("base", base), ("tuned", tuned)) if measured is not None}
    table = _Classified(shards, tokenizer) if shards.labels else _Written(shards, tokenizer, what)
    values = {name: table.values(measured) for name, measured in both.items()}
    metrics = [
        {"metric": metric, **{name: each[metric] for name, each in values.items() if each.get(metric) is not None}}
        for metric in what.metrics
    ]
    samples = []
    for row in what.samples:
        sample = {"source": "{}:{}".format(*shards.test.source(row)), **table.sample(row)}
        sample |= {name: said for name, measured in both.items() if (said := table.said(measured, row)) is not None}
        samples.append(sample)
    return {
        "rows": shards.test.rows,
        **({"generatedRows": len(what.rows)} if what.exact_match else {}),
        "metrics": metrics,
        "samples": samples,
        "notes": _notes(shards, what, base),
    }


def _notes(shards: Shards, what: Wanted, base: Measured | None) -> list[str]:
    rows = shards.test.rows
    notes = []
    if what.exact_match and len(what.rows) == ROW_CAP < rows:
        notes.append(f"exact-match was measured on {ROW_CAP} of {rows} test rows, evenly spread")
    if cut := sum(_is_cut(shards, row) for row in what.rows):
        notes.append(
            f"the answers of {cut} of {len(what.rows)} rows are cut at data.maxLength, and so are their references"
        )
    if what.classes and base is not None:
        notes.append("the base was measured with the classification head that training began with")
    if not rows:
        notes.append("there is no test split, so nothing was measured")
    return notes


def _is_cut(shards: Shards, row: int) -> bool:
    """Whether an answer of the test split lost its end. Every whole row ends with a token that ends an answer; of a
    conversation it may be another than those that end generation, so its length counts too."""
    tokens = shards.test.tokens(row)
    full = shards.task == "seq2seq-lm" or len(tokens) >= shards.resolved.get("max_length", 0)
    return full and int(tokens[-1]) not in shards.tokenizer["stop"]


class _Written:
    """Of a model that writes answers."""

    def __init__(self, shards: Shards, tokenizer: Any, what: Wanted) -> None:
        self._test, self._tokenizer = shards.test, tokenizer
        self._references = {
            row: _text(tokenizer, self._test.tokens(row)[self._test.prompt_length(row) :]) for row in what.rows
        }

    def values(self, measured: Measured) -> dict[str, float | None]:
        """Of each metric its value, None where it is not known."""
        loss, answers = measured.loss, measured.answers
        hits = sum(_text(self._tokenizer, ids) == self._references[row] for row, ids in answers.items())
        return {
            "loss": loss,
            "perplexity": None if loss is None else perplexity(loss),
            "exact-match": hits / len(answers) if answers else None,
        }

    def sample(self, row: int) -> dict[str, str]:
        prompt = self._test.tokens(row)[: self._test.prompt_length(row)]
        return {"prompt": _text(self._tokenizer, prompt), "reference": self._references[row]}

    def said(self, measured: Measured, row: int) -> str | None:
        return _text(self._tokenizer, measured.answers[row]) if row in measured.answers else None


class _Classified:
    """Of a classifier."""

    def __init__(self, shards: Shards, tokenizer: Any) -> None:
        self._test, self._tokenizer, self._names = shards.test, tokenizer, shards.labels

    def values(self, measured: Measured) -> dict[str, float | None]:
        """Of each metric its value, None where it is not known."""
        values: dict[str, float | None] = {"loss": measured.loss}
        if measured.labels:
            rows = range(self._test.rows)
            values |= scores([self._test.labels(row) for row in rows], [measured.labels[row] for row in rows])
        return values

    def sample(self, row: int) -> dict[str, str]:
        tokens, pair = self._test.tokens(row), self._test.prompt_length(row)
        parts = [_text(self._tokenizer, part) for part in (tokens[:pair], tokens[pair:])]
        return {
            "prompt": "\n\n".join(part for part in parts if part),
            "reference": self._called(self._test.labels(row)),
        }

    def said(self, measured: Measured, row: int) -> str | None:
        return self._called(measured.labels[row]) if row in measured.labels else None

    def _called(self, labels: Labels) -> str:
        return ", ".join(self._names[label] for label in labels) or NO_LABEL


def _text(tokenizer: Any, ids: Any) -> str:
    return tokenizer.decode([int(token) for token in ids], skip_special_tokens=True).strip()
