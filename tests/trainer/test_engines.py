"""Every strategy gives the single process's training, and goes on from every other's checkpoint: see engine_cells.py."""

from __future__ import annotations

from typing import Any

import pytest

from tests.trainer import engine_cells, two_ranks

pytestmark = pytest.mark.timeout(900)  # the first test waits for the gang

TOLERANCE = 5e-5
"""Relative, in fp32: sums over ranks and micro-batches are taken in another order, and AdamW's first steps look at little but signs."""

BF16 = 0.02


@pytest.fixture(scope="session")
def gang(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All cells, as rank 0 of two processes saw them."""
    folder = tmp_path_factory.mktemp("engines")
    two_ranks.run(engine_cells.__file__, folder, seconds=800, quantises=True)
    return two_ranks.found(folder)


CHAINS = [
    f"causal-lm/{method}/{strategy}"
    for method in engine_cells.CHAINS
    for strategy in (*engine_cells.STRATEGIES, "single")
]
CELLS = ["/".join(cell) for cell in engine_cells.cells()]


def said(gang: dict[str, Any], cell: str) -> dict[str, Any]:
    assert "error" not in gang[cell], gang[cell]["error"]
    return gang[cell]


@pytest.mark.parametrize("cell", CELLS)
def test_step_equals_the_single_process(gang: dict[str, Any], cell: str) -> None:
    found = said(gang, cell)
    assert max(*found["first"], found["first weights"]) < TOLERANCE


@pytest.mark.parametrize("cell", CHAINS)
def test_checkpoints_go_from_strategy_to_strategy(gang: dict[str, Any], cell: str) -> None:
    found = said(gang, cell)
    assert max(found["first"]) < TOLERANCE
    assert found["first weights"] < TOLERANCE
    assert max(found["next"]) < TOLERANCE, "it goes on from another strategy's checkpoint"
    assert found["next weights"] < TOLERANCE
    assert found["taken"] <= (1.0 if cell.rsplit("/", 1)[1] in ("ddp", "single") else 0.6), "it reads its share"
    assert found["moved"] > 1e-6, "the moving average is another model"
    assert found["came back"] == 0.0
    assert found["unsharded"] < 1e-5
    sharded = cell.rsplit("/", 1)[1] in ("zero3", "fsdp2")
    assert (found["communicates"], found["communicates unsharded"]) == (sharded, False)
    assert found["even"] is sharded


@pytest.mark.parametrize("cell", [cell for cell in CHAINS if cell.endswith("fsdp2")])
def test_fsdp2_really_shards(gang: dict[str, Any], cell: str) -> None:
    assert said(gang, cell)["sharded"]


@pytest.mark.parametrize("strategy", engine_cells.OFFLOADS)
def test_offload_to_the_host(gang: dict[str, Any], strategy: str) -> None:
    found = said(gang, f"offload/{strategy}")
    assert max(*found["first"], *found["next"], found["next weights"]) < TOLERANCE


@pytest.mark.parametrize(
    "cell", [*(f"full/{name}" for name in engine_cells.STRATEGIES), "lora/zero2", "lora/zero3", "lora/fsdp2"]
)
def test_bf16_computes_rounded_and_keeps_exact(gang: dict[str, Any], cell: str) -> None:
    found = said(gang, f"half/{cell}")
    assert found["begin"] == 0.0, "master weights are those that were loaded, not rounded ones"
    assert TOLERANCE < max(found["first"]) < BF16, "loss and norm of the gradients are near, and not those of fp32"
    assert found["restored"] < 1e-7
    assert found["next"][0] < BF16


@pytest.mark.parametrize("strategy", engine_cells.STRATEGIES)
def test_bf16_gradients_of_many_micro_batches_are_summed_in_fp32(gang: dict[str, Any], strategy: str) -> None:
    assert said(gang, f"half/full/{strategy}")["summed"] < 0.004, "in bf16 it would be 0.01"


@pytest.mark.parametrize("strategy", engine_cells.STRATEGIES[1:])
def test_large_gradients_are_sharded_in_each_micro_batch(gang: dict[str, Any], strategy: str) -> None:
    found = said(gang, f"held/{strategy}")
    assert found["even"] is (strategy != "zero1")
    assert max(*found["first"], *found["next"], found["next weights"]) < TOLERANCE


@pytest.mark.parametrize("strategy", engine_cells.STRATEGIES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_update_with_bad_gradients_is_not_made(gang: dict[str, Any], precision: str, strategy: str) -> None:
    """So that the layer where they began can still be found."""
    found = said(gang, f"spoilt/{precision}/{strategy}")
    assert found["norm"] in ("nan", "inf")
    assert found["moved"] == 0.0
