"""Data files read as prepare reads them, seen by the whole suite."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from finetune_api.checks import CHECKS
from finetune_api.data import ChecksSpec
from finetune_api.findings import Finding, RowRef
from finetune_trainer.checks.suite import Suite
from finetune_trainer.data import formats, readers
from finetune_trainer.data.formats import InvalidRow

_WORDS = [
    "harbour",
    "morning",
    "letter",
    "garden",
    "window",
    "river",
    "teacher",
    "bridge",
    "market",
    "winter",
    "captain",
    "village",
    "lantern",
    "orchard",
    "silver",
    "thunder",
    "library",
    "journey",
    "blanket",
    "kitchen",
    "mountain",
    "station",
    "feather",
    "island",
    "pepper",
    "violin",
    "compass",
    "meadow",
    "carefully",
    "slowly",
    "quietly",
    "brings",
    "carries",
    "follows",
    "remembers",
    "crosses",
    "opens",
    "paints",
    "repairs",
    "watches",
    "finds",
    "keeps",
    "before",
    "after",
    "under",
    "beside",
    "without",
    "between",
    "against",
    "the",
    "a",
    "one",
    "every",
    "another",
    "this",
    "that",
    "old",
    "small",
    "bright",
    "quiet",
    "heavy",
]

Lines = Sequence[dict[str, Any] | bytes]
Examine = Callable[..., list[Finding]]


def prose(words: int, seed: object) -> str:
    """English words in an order that no other seed gives."""
    chosen = random.Random(repr(seed))
    return " ".join(chosen.choice(_WORDS) for _ in range(words)).capitalize() + "."


def pairs(count: int, seed: object = 0) -> list[dict[str, Any]]:
    return [{"prompt": prose(12, (seed, n)), "completion": prose(18, (seed, -1 - n))} for n in range(count)]


def talks(count: int) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]}
        for row in pairs(count)
    ]


def unusable(error: InvalidRow, row: RowRef) -> Finding:
    """As prepare tells it, less the numbers."""
    check = CHECKS[error.code]
    return Finding(
        code=check.code, severity=check.severity, count=1, message=str(error), remedy=check.remedy, rows=[row]
    )


@pytest.fixture
def examine(tmp_path: Path) -> Examine:
    """What is found in files of these lines: train.jsonl, and validation.jsonl where there are any."""

    def examined(train: Lines, validation: Lines = (), **spec: Any) -> list[Finding]:
        checks = ChecksSpec.model_validate(spec)
        suite, invalid, form, rows, names = None, [], None, 0, []
        for part, lines in (("train", train), ("validation", validation)):
            if not lines:
                continue
            path = tmp_path / f"{part}.jsonl"
            path.write_bytes(
                b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
            )
            names.append(path.name)
            for raw in readers.read_rows(path):
                rows += 1
                try:
                    value = formats.value_of(raw)
                    form = form or formats.detect(value)
                    example = formats.read(value, form)
                except InvalidRow as error:
                    invalid.append(unusable(error, RowRef(file=path.name, line=raw.line)))
                    continue
                suite = suite or Suite(checks, form=form)
                suite.see(part, len(names) - 1, raw.line, example)
        return [*invalid, *(suite.findings(names) if suite else [])]

    return examined
