"""A multimodal model under DistributedDataParallel, beside one process. Run as a script by test_multimodal.py: rank, folder of results."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from finetune_trainer.train.engines.ddp import DdpEngine
from finetune_trainer.train.engines.engine import Setting
from finetune_trainer.train.optimizers.choose import recipe_of
from finetune_trainer.train.optimizers.groups import groups

from tests.trainer.model.conftest import VOCABULARY, made, spec_of

METHODS = ("lora", "full", "from an adapter on images")


def losses(method: str, base: Path, adapter: Path, *, world: int, rank: int) -> list[float]:
    """Of three steps over the same four rows."""
    how: dict[str, Any] = {"type": "full" if method == "full" else "lora"}
    earlier = None
    if method.startswith("from"):
        earlier, how = adapter, how | {"initFrom": {"uri": "pvc://models/adapter"}}
    net = made(base, spec_of(how), adapter=earlier)
    setting = Setting(rank=rank, world_size=world, device=torch.device("cpu"), bf16=False, max_grad_norm=1.0)
    trained = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    engine = DdpEngine(setting, net, recipe_of("adamw", net), groups(trained, weight_decay=0.0, plus_ratio=1.0))
    ids = torch.randint(3, VOCABULARY, (4, 9), generator=torch.Generator().manual_seed(1))
    mine: Any = ids[rank::world]
    found = []
    for _ in range(3):
        total = engine.accumulate(
            [lambda: mine], lambda model, rows: model(input_ids=rows, labels=rows).loss * len(rows), 1 / len(ids)
        )
        if world > 1:
            dist.all_reduce(total)
        engine.step(0.01)
        found.append(float(total))
    return found


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found: dict[str, dict[str, Any]] = {}
    for method in METHODS:
        where = (method, Path(os.environ["BASE"]), folder / "adapter")
        try:
            found[method] = {"alone": losses(*where, world=1, rank=0), "losses": losses(*where, world=2, rank=rank)}
        except Exception:
            found[method] = {"error": traceback.format_exc()}
    if rank == 0:
        (folder / "rank-0.json").write_text(json.dumps(found))
    dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
