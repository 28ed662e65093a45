"""However a step is cut into micro-batches, it is the same step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from finetune_trainer.errors import Stopped
from finetune_trainer.tasks.causal import packed
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


def test_packs_of_many_shapes_become_packs_of_few() -> None:
    """Every pair of segments and greatest length is a plan of cuDNN's."""
    draw = np.random.default_rng(0)
    shapes, tokens, most = set(), 0, 0
    for _ in range(300):
        rows = [draw.integers(1, 97, size=length) for length in draw.integers(20, 2000, size=draw.integers(1, 60))]
        trained = [np.arange(1, len(row)) for row in rows]
        plain, few = packed(rows, trained, pad=0), packed(rows, trained, pad=0, few_shapes=True)
        lengths = few.inputs["cu_seq_lens_q"].diff()
        shapes.add((len(lengths), few.inputs["max_length_q"]))
        assert few.inputs["max_length_q"] >= lengths.max()
        assert few.labels.equal(plain.labels)
        ids = few.inputs["input_ids"][0]
        assert ids[few.extra["column"] + len(ids)].equal(plain.inputs["input_ids"][0][plain.extra["column"]])
        tokens, most = tokens + len(ids), most + len(plain.inputs["input_ids"][0])
    assert len(shapes) <= 2 * 7, "1 to 64 segments, up to 1,024 or 2,048 tokens"
    assert tokens / most < 1.001
