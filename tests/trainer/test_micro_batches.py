"""However a step is cut into micro-batches, it is the same step."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_trainer.errors import Stopped
from finetune_trainer.train.engines import zero

NARROW = 48
"""Two or three rows fit a micro-batch, so that a step takes several."""


@pytest.fixture
def deepspeed_rank(monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    """What PID 1 would have set for one rank of strategy zero2."""
    for name, value in {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "LOCAL_SIZE": "1",
        "MASTER_PORT": str(free_port),
        "DS_ACCELERATOR": "cpu",
        "GLOO_SOCKET_IFNAME": "lo",
    }.items():
        monkeypatch.setenv(name, value)


def same_training(job: Any, single: Any, strategy: str) -> None:
    """Train a part of the run, and compare it with the whole."""
    with pytest.raises(Stopped, match="at step 12"):
        job.here(strategy=strategy, microBatchTokens=NARROW, stop_when=lambda progress: progress.step == 11)
    for kind in ("loss", "grad_norm", "eval_loss"):
        mine, theirs = ({row["step"]: row[kind] for row in one.history(1) if kind in row} for one in (job, single))
        assert mine == pytest.approx({step: theirs[step] for step in mine}, abs=5e-5)
        assert max(mine) >= 10


def test_ddp(make_job, single: Any) -> None:
    same_training(make_job("narrow-ddp"), single, "ddp")


@pytest.mark.parametrize("held", [True, False], ids=["reduced once", "reduced in each"])
def test_zero2(make_job, single: Any, deepspeed_rank: None, monkeypatch: pytest.MonkeyPatch, held: bool) -> None:
    if not held:
        monkeypatch.setattr(zero, "_HELD_GRADIENT_BYTES", 0)
    same_training(make_job(f"narrow-zero2-{held}".lower()), single, "zero2")
