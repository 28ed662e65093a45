"""Which pods' logs are shown, and who wrote a line."""

from __future__ import annotations

import pytest
from finetune_cli.logs import Choice, Line, Source, chosen

ALL = [
    Source("prepare", 1, 0, "p"),
    Source("train", 1, 0, "t10"),
    Source("train", 1, 1, "t11"),
    Source("train", 2, 0, "t20"),
    Source("train", 2, 1, "t21"),
]


@pytest.mark.parametrize(
    ("choice", "pods"),
    [
        (Choice(), ["t20", "t21"]),
        (Choice(stage="prepare"), ["p"]),
        (Choice(attempt=1), ["t10", "t11"]),
        (Choice(rank=3), ["t20", "t21"]),
        (Choice(stage="train", rank=1, attempt=1), ["t10", "t11"]),
        (Choice(stage="prepare", rank=0), []),
        (Choice(stage="publish"), []),
        (Choice(attempt=3), []),
    ],
)
def test_chosen(choice: Choice, pods: list[str]) -> None:
    assert [source.pod for source in chosen(ALL, choice)] == pods


@pytest.mark.parametrize(
    ("source", "text", "writer", "words"),
    [
        (ALL[2], "[rank 3] step 1", "rank 3", "step 1"),
        (ALL[2], "asked to stop", "pod 1", "asked to stop"),
        (ALL[0], "reading a.jsonl", "prepare", "reading a.jsonl"),
    ],
)
def test_who_wrote_a_line(source: Source, text: str, writer: str, words: str) -> None:
    line = Line("2026-01-01T00:00:00.000000001Z", source, text)
    assert (line.writer[0], line.words) == (writer, words)
