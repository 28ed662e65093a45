"""The table of base against tuned, from answers that are known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from finetune_api.evaluation import EvaluationSpec
from finetune_trainer.data.shards import Shards
from finetune_trainer.evaluate import compare, measure


@pytest.fixture(scope="module")
def shards(make_job) -> Shards:
    return Shards.open(make_job("table").folder / "prepared")


@pytest.fixture(scope="module")
def tokenizer(claims: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(claims / "models" / "base")


def reference(shards: Shards, row: int) -> list[int]:
    return shards.test.tokens(row)[shards.test.prompt_length(row) :].tolist()


def test_exact_match_counts_whole_answers(shards: Shards, tokenizer: Any) -> None:
    wanted = measure.wanted(shards, EvaluationSpec())
    assert wanted.metrics == ("loss", "perplexity", "exact-match")
    assert wanted.rows == tuple(range(shards.test.rows))
    tuned = measure.Measured(loss=0.5, answers={row: reference(shards, row) for row in wanted.rows})
    tuned.answers[0] = tuned.answers[0][:-2]
    base = measure.Measured(loss=2.0, answers={row: [] for row in wanted.rows})
    table = compare.evaluation(shards, tokenizer, wanted, tuned, base)
    share = (shards.test.rows - 1) / shards.test.rows
    assert table["metrics"] == [
        {"metric": "loss", "base": 2.0, "tuned": 0.5},
        {"metric": "perplexity", "base": math.exp(2.0), "tuned": math.exp(0.5)},
        {"metric": "exact-match", "base": 0.0, "tuned": share},
    ]
    assert (table["rows"], table["generatedRows"]) == (shards.test.rows, shards.test.rows)
    sample = table["samples"][-1]
    assert sample["reference"] == sample["tuned"] != ""
    assert sample["base"] == ""
    assert sample["prompt"].startswith("Reverse: ")
    assert sample["source"].startswith("pvc://datasets/rows.jsonl:")


@pytest.mark.parametrize(
    ("metrics", "loss", "rows"), [(["exact-match"], False, 6), (["loss"], True, 6), (["perplexity"], True, 6)]
)
def test_only_what_was_asked_for_is_measured(
    shards: Shards, tokenizer: Any, metrics: list[str], loss: bool, rows: int
) -> None:
    wanted = measure.wanted(shards, EvaluationSpec.model_validate({"metrics": metrics, "baseline": False}))
    assert (wanted.loss, wanted.exact_match, len(wanted.rows)) == (loss, "exact-match" in metrics, rows)
    tuned = measure.Measured(loss=1.0 if loss else None, answers={row: [] for row in wanted.rows})
    table = compare.evaluation(shards, tokenizer, wanted, tuned, None)
    assert [row["metric"] for row in table["metrics"]] == metrics
    assert all(set(row) == {"metric", "tuned"} for row in table["metrics"])
    assert ("generatedRows" in table) == ("exact-match" in metrics)


def test_many_rows_are_capped_and_said(shards: Shards, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "ROW_CAP", 3)
    monkeypatch.setattr(compare, "ROW_CAP", 3)
    wanted = measure.wanted(shards, EvaluationSpec())
    assert wanted.rows == (0, 2, 5)
    tuned = measure.Measured(loss=1.0, answers={row: [] for row in wanted.rows})
    table = compare.evaluation(shards, tokenizer, wanted, tuned, None)
    assert (table["rows"], table["generatedRows"]) == (6, 3)
    assert table["notes"] == ["exact-match was measured on 3 of 6 test rows, evenly spread"]
