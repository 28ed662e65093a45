"""Under every engine the fast ways give what a single process gives the plain way: see fast_cells.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.trainer import engine_cells, fast_cells

TOLERANCE = 5e-5
"""Relative, in fp32, after two steps."""


@pytest.fixture(scope="module")
def gang(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All cells, as rank 0 of two processes saw them."""
    folder = tmp_path_factory.mktemp("fast")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "DEEPSPEED_LOG_LEVEL": "error",
    }
    command = [sys.executable, "-W", "ignore", fast_cells.__file__]
    outputs = [folder / f"output-{rank}" for rank in range(2)]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(folder)], env=environment, stdout=output.open("w"), stderr=subprocess.STDOUT
        )
        for rank, output in enumerate(outputs)
    ]
    try:
        codes = [rank.wait(200) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert codes == [0, 0], "".join(output.read_text()[-3000:] for output in outputs)
    return json.loads((folder / "rank-0.json").read_text())


@pytest.mark.parametrize("strategy", engine_cells.STRATEGIES)
@pytest.mark.parametrize("method", fast_cells.METHODS)
def test_two_steps(gang: dict[str, Any], method: str, strategy: str) -> None:
    found = gang[f"{method}/{strategy}"]
    assert "error" not in found, found["error"]
    assert found["said"] == ["rows are packed", "output head: fused"]
    assert found["losses"] < TOLERANCE
    assert found["weights"] < TOLERANCE
