"""Under every engine the fast ways give what a single process gives the plain way: see fast_cells.py."""

from __future__ import annotations

from typing import Any

import pytest

from tests.trainer import engine_cells, fast_cells, two_ranks

pytestmark = pytest.mark.timeout(900)  # the first test waits for the gang, which other tests may slow down

TOLERANCE = 5e-5
"""Relative, in fp32, after two steps."""


@pytest.fixture(scope="module")
def gang(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All cells, as rank 0 of two processes saw them."""
    folder = tmp_path_factory.mktemp("fast")
    two_ranks.run(fast_cells.__file__, folder, seconds=800)
    return two_ranks.found(folder)


@pytest.mark.parametrize("strategy", engine_cells.STRATEGIES)
@pytest.mark.parametrize("method", fast_cells.METHODS)
def test_two_steps(gang: dict[str, Any], method: str, strategy: str) -> None:
    found = gang[f"{method}/{strategy}"]
    assert "error" not in found, found["error"]
    assert found["said"] == ["rows are packed", "output head: fused"]
    assert found["losses"] < TOLERANCE
    assert found["weights"] < TOLERANCE
