"""Where weights are sharded every forward waits for the other ranks': losses and answers are those of one process, and nobody hangs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.trainer import two_ranks
from tests.trainer.evaluate import sharded_ranks

pytestmark = pytest.mark.timeout(900)  # the first test waits for the gang, which other tests may slow down

PROMPTS = [[5, 9, 13, 17], [6], [20, 21, 22, 23, 24, 25, 26], [30, 31], [7, 7, 7]]


@pytest.fixture(scope="module")
def gang(tmp_path_factory: pytest.TempPathFactory, shards_in: Any) -> list[dict[str, Any]]:
    """What each rank saw."""
    folder = tmp_path_factory.mktemp("sharded")
    for task, end in (("causal-lm", []), ("seq2seq-lm", [1])):
        shards_in(folder / task, task=task, validation=[([*prompt, *end], [9, 1]) for prompt in PROMPTS])
    two_ranks.run(sharded_ranks.__file__, folder, seconds=800, DS_ACCELERATOR="cpu", LOCAL_SIZE="2")
    return [two_ranks.found(folder, rank) for rank in range(2)]


@pytest.mark.parametrize("cell", ["/".join(map(str, cell)) for cell in sharded_ranks.CELLS])
def test_measures_and_answers_are_those_of_one_process(gang: list[dict[str, Any]], cell: str) -> None:
    for rank in gang:
        found = rank[cell]
        assert "error" not in found, found["error"]
        assert (found["sharded communicates"], found["gathered communicates"]) == (True, False)
        for when in ("sharded", "gathered"):
            for model, (loss, answers) in found["alone"].items():
                assert found[when][model][0] == pytest.approx(loss, rel=1e-4)
                assert found[when][model][1] == answers, (when, model)
        if "base" in found["alone"]:
            assert found["alone"]["base"] != found["alone"]["tuned"]
