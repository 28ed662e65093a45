"""What needs a GPU: every strategy on one, bitsandbytes' optimizers, and NVMe. Compared with one process on the CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from finetune_api.compute import OffloadSpec
from finetune_trainer.train.engines.engine import Engine, Setting

from tests.trainer import engine_cells
from tests.trainer.engine_models import model_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

TOLERANCE = 1e-3
"""Relative. A GPU's kernels sum in another order, and AdamW's first steps look at little but signs."""


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    torch.backends.cuda.matmul.allow_tf32 = False
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def three_steps(engine: Engine) -> list[float]:
    losses = []
    for number in range(1, 4):
        batch = engine_cells.batch_of("causal-lm", engine_cells.rows_of(number))
        total = engine.accumulate(
            [lambda batch=batch: batch], lambda model, one: engine_cells.loss_of("causal-lm", model, one), 0.01
        )
        engine.step(0.01)
        losses.append(float(total))
    return losses


def engine_on(device: str, strategy: str, optimizer: str = "adamw", **more: Any) -> Engine:
    how = {"bf16": False, "max_grad_norm": 0.5} | more
    setting = Setting(rank=0, world_size=1, device=torch.device(device), **how)
    return engine_cells.engine_of(strategy, setting, model_of("causal-lm", "full"), optimizer)


@pytest.fixture(scope="module")
def expected() -> list[float]:
    return three_steps(engine_on("cpu", "ddp"))


@pytest.mark.parametrize("strategy", engine_cells.STRATEGIES)
def test_strategy(strategy: str, expected: list[float]) -> None:
    assert three_steps(engine_on("cuda:0", strategy)) == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("strategy", engine_cells.OFFLOADS)
def test_offload_to_the_host(strategy: str, expected: list[float]) -> None:
    engine = engine_on("cuda:0", strategy.split()[0], offload=engine_cells.OFFLOADS[strategy])
    assert three_steps(engine) == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("optimizer", ["adamw-8bit", "paged-adamw", "paged-adamw-8bit"])
def test_bitsandbytes(optimizer: str, expected: list[float]) -> None:
    one = engine_on("cuda:0", "ddp", optimizer)
    assert three_steps(one) == pytest.approx(expected, rel=0.01)
    kept = engine_cells.exported(one, share=False)
    other = engine_on("cuda:0", "ddp", optimizer)
    engine_cells.restore(other, kept, 3)
    assert three_steps(other) == pytest.approx(three_steps(one), rel=0.01)


def test_nvme(tmp_path: Path, expected: list[float]) -> None:
    from deepspeed.git_version_info import installed_ops

    if not installed_ops.get("async_io"):
        pytest.skip("DeepSpeed was built without async_io")
    offload = OffloadSpec(optimizer="nvme", parameters="nvme", nvme_path=str(tmp_path))
    assert three_steps(engine_on("cuda:0", "zero3", offload=offload)) == pytest.approx(expected, rel=TOLERANCE)
