"""Packed rows, the loss without logits and recomputed layers under every engine, in a gang of two, beside one process that does it plainly.

Run as a script by test_fast_ways.py: rank, folder of results.
"""

from __future__ import annotations

import datetime
import functools
import gc
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.model.checkpointing import checkpoint_activations
from finetune_trainer.tasks import probes
from finetune_trainer.tasks.base import Batch
from finetune_trainer.tasks.causal import CausalTask, packed, padded
from finetune_trainer.train.engines.engine import Engine

from tests.trainer import engine_cells

METHODS = ("full", "lora")
STEPS = 2
_LENGTHS = (9, 4, 13, 6, 5, 8, 3, 7)


def spec() -> FineTuneJobSpec:
    place = {"uri": "pvc://claim/x"}
    return FineTuneJobSpec.model_validate(
        {
            "model": place,
            "method": {"type": "full"},
            "data": {"train": [place], "packing": True},
            "workspace": place,
            "output": place,
        }
    )


def train(engine: Engine, task: CausalTask, *, world: int, rank: int) -> list[float]:
    """Loss of each step."""
    losses = []
    for number in range(1, STEPS + 1):
        draw = np.random.default_rng(number)
        rows = [draw.integers(1, 97, size=length) for length in _LENGTHS]
        trained = [np.arange(1 + length // 3, length) for length in _LENGTHS]
        mine = list(range(rank, len(rows), world))
        parts = [mine[:3], mine[3:]]
        lay = functools.partial(packed, pad=0, few_shapes=True) if task.packs else functools.partial(padded, pad=0)
        makers: list[Callable[[], Batch]] = [
            functools.partial(lay, [rows[i] for i in part], [trained[i] for i in part]) for part in parts
        ]
        engine.module.train()
        total = engine.accumulate(makers, task.loss, 0.01).float()
        if world > 1:
            dist.all_reduce(total)
        losses.append(float(total))
        engine.step(0.01)
    return losses


def cell(method: str, strategy: str) -> dict[str, Any]:
    plain = CausalTask(pad=0)
    plain.way = "full"
    alone = engine_cells.engine_of(
        "ddp", engine_cells.setting_of(1, ema=None), engine_cells.model_of("causal-lm", method)
    )
    expected = train(alone, plain, world=1, rank=0)
    model = engine_cells.model_of("causal-lm", method)
    checkpoint_activations(model, "full")
    engine = engine_cells.engine_of(strategy, engine_cells.setting_of(2, ema=None), model)
    task = CausalTask(pad=0)
    gang: Any = SimpleNamespace(device=torch.device("cpu"), gather=lambda value: [value])
    said = probes.settle(task, engine.module, spec(), gang, longest=max(_LENGTHS))
    losses = train(engine, task, world=2, rank=dist.get_rank())
    weights, others = engine_cells.exported(engine, share=True), engine_cells.exported(alone, share=False)
    return {
        "said": said,
        "losses": max(abs(a - b) / b for a, b in zip(losses, expected, strict=True)),
        "weights": engine_cells.difference(weights, others),
    }


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= own | {"DS_ACCELERATOR": "cpu"}
    limit = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=limit)
    found: dict[str, dict[str, Any]] = {}
    for method in METHODS:
        for strategy in engine_cells.STRATEGIES:
            try:
                found[f"{method}/{strategy}"] = cell(method, strategy)
            except Exception:
                found[f"{method}/{strategy}"] = {"error": traceback.format_exc()}
            gc.collect()
    if rank == 0:
        (folder / "rank-0.json").write_text(json.dumps(found))
    dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
