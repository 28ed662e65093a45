"""Where weights are sharded every forward waits for the other ranks': losses and answers are those of one process, and nobody hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.trainer.evaluate import sharded_ranks

PROMPTS = [[5, 9, 13, 17], [6], [20, 21, 22, 23, 24, 25, 26], [30, 31], [7, 7, 7]]


@pytest.fixture(scope="module")
def gang(tmp_path_factory: pytest.TempPathFactory, shards_in: Any) -> list[dict[str, Any]]:
    """What each rank saw."""
    folder = tmp_path_factory.mktemp("sharded")
    for task, end in (("causal-lm", []), ("seq2seq-lm", [1])):
        shards_in(folder / task, task=task, validation=[([*prompt, *end], [9, 1]) for prompt in PROMPTS])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "DS_ACCELERATOR": "cpu",
        "LOCAL_SIZE": "2",
        "DEEPSPEED_LOG_LEVEL": "error",
    }
    command = [sys.executable, "-W", "ignore", sharded_ranks.__file__]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(folder)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
            stdout=(folder / f"output-{rank}").open("w"),
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]
    try:
        codes = [rank.wait(200) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert codes == [0, 0], "".join((folder / f"output-{rank}").read_text()[-3000:] for rank in range(2))
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


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
