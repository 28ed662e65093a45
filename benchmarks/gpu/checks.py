"""What differs on a GPU, each tried alone: `python -m benchmarks.gpu.checks NAME` prints its figures as one line of JSON.

Run without a GPU, a check tries its own code on small shapes, and says nothing of a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from finetune_trainer.model import attention
from finetune_trainer.tasks import probes
from finetune_trainer.tasks.causal import CausalTask, packed, padded
from torch import nn

from benchmarks.gpu.cases import Case, build
from benchmarks.gpu.contenders import Alone, adapted, now, spec_of

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if ON_GPU else torch.device("cpu")
_SHAPE = {
    "vocab_size": 32000 if ON_GPU else 512,
    "hidden_size": 1024 if ON_GPU else 64,
    "intermediate_size": 2816 if ON_GPU else 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 16 if ON_GPU else 4,
    "num_key_value_heads": 8 if ON_GPU else 2,
    "max_position_embeddings": 8192,
}
_QLORA_STEPS, _LESS = (30, 0.95) if ON_GPU else (3, 1.0)
_SHAPES, _LONGEST = (40, 2048) if ON_GPU else (4, 64)


def packing(model: Path | None) -> dict[str, Any]:
    """A pretrained model's rows are packed in bf16, and how far its logits move by it (root mean square over their spread)."""
    from transformers import AutoModelForCausalLM

    if model is None:
        raise SystemExit("no pretrained model: MODEL=folder of one")
    module = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, local_files_only=True).to(DEVICE)
    task = CausalTask(pad=0)
    said = probes.settle(task, module, spec_of("lora", DEVICE), Alone(DEVICE), longest=1024)
    draw = np.random.default_rng(0)
    rows = [draw.integers(1, module.config.get_text_config().vocab_size, size=length) for length in (60, 9, 200, 33)]
    nothing = [np.zeros(0, dtype=np.int64)] * len(rows)
    with torch.no_grad():
        together = module(**packed(rows, nothing, pad=0).to(DEVICE).inputs).logits[0].float()
        alone = [module(**padded([row], nothing[:1], pad=0).to(DEVICE).inputs).logits[0].float() for row in rows]
    apart = torch.cat(alone)
    moved = float((together - apart).square().mean().sqrt() / apart.std())
    return {"passed": task.packs, "moved": round(moved, 4), "output_head": said[-1]}


def dtypes(model: Path | None) -> dict[str, Any]:
    """Full fine-tuning in bf16 under ddp takes the kernel for rows of uneven lengths in every layer, and never a loop over them."""
    from torch.nn.attention import varlen

    taken: dict[str, list[Any]] = {"kernel": [], "loop": []}

    def told(name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def call(query: torch.Tensor, *rest: Any, **more: Any) -> Any:
            taken[name].append({str(tensor.dtype) for tensor in (query, *rest[:2])})
            return inner(query, *rest, **more)

        return call

    with (
        patch.object(varlen, "varlen_attn", told("kernel", varlen.varlen_attn)),
        patch.object(attention, "_by_segment", told("loop", attention._by_segment)),
    ):
        losses = _steps("full", 2)
    dtypes = sorted(set().union(*taken["kernel"], *taken["loop"]))
    right = bool(taken["kernel"]) and not taken["loop"] and dtypes == ["torch.bfloat16"]
    return {"passed": right if ON_GPU else bool(taken["loop"]), "dtypes": dtypes, "losses": losses} | {
        name: len(calls) for name, calls in taken.items()
    }


def qlora(model: Path | None) -> dict[str, Any]:
    """A base in 4 bits learns a batch by heart."""
    losses = _steps("qlora" if ON_GPU else "lora", _QLORA_STEPS, rate=2e-3)
    return {"passed": losses[-1] < _LESS * losses[0], "first": losses[0], "last": losses[-1]}


def uneven(model: Path | None) -> dict[str, Any]:
    """Milliseconds of forward and backward of micro-batches: of one shape again and again, of new shapes, and of new shapes made few."""
    module = build(Case("uneven", "lora", _SHAPE), DEVICE).requires_grad_(True)
    attention.install()
    draw = np.random.default_rng(0)
    packs = [draw.integers(8, _LONGEST, size=draw.integers(6, 24)) for _ in range(_SHAPES)]

    def milliseconds(lengths: list[np.ndarray], few_shapes: bool) -> float:
        tokens, began = 0, now(DEVICE)
        for one in lengths:
            rows = [draw.integers(1, _SHAPE["vocab_size"], size=length) for length in one]
            batch = packed(rows, [np.zeros(0, dtype=np.int64)] * len(rows), pad=0, few_shapes=few_shapes).to(DEVICE)
            module(**batch.inputs).logits.float().mean().backward()
            tokens += int(one.sum())
        return 1e3 * (now(DEVICE) - began) / tokens * 1e3

    milliseconds(packs[:1], False)
    found = {
        "same": milliseconds([packs[0]] * _SHAPES, False),
        "few": milliseconds(packs, True),
        "few_again": milliseconds(packs[::-1], True),
        "new": milliseconds([lengths + 1 for lengths in packs], False),
    }
    return {"passed": found["few_again"] <= 1.25 * found["same"] if ON_GPU else True} | {
        f"{name} (ms per 1,000 tokens)": round(value, 2) for name, value in found.items()
    }


def _steps(method: str, count: int, rate: float = 1e-4) -> list[float]:
    """Losses of some steps on one batch of packed rows of uneven lengths, by the engine of strategy ddp."""
    from finetune_trainer.train.engines.choose import engine_of

    case = Case(method, method, _SHAPE)
    net: nn.Module = adapted(build(case, DEVICE), case).train()
    spec = spec_of(method, DEVICE)
    engine = engine_of(spec, Alone(DEVICE), net)
    task = CausalTask(pad=0)
    probes.settle(task, engine.module, spec, Alone(DEVICE), longest=512)
    draw = np.random.default_rng(0)
    rows = [draw.integers(1, _SHAPE["vocab_size"], size=length) for length in (7, 300, 61, 128)]
    trained = [np.arange(1, len(row)) for row in rows]
    losses = []
    for _ in range(count):
        total = engine.accumulate(
            [lambda: packed(rows, trained, pad=0, few_shapes=True)], task.loss, 1 / sum(map(len, trained))
        )
        engine.step(rate)
        losses.append(round(float(total) / sum(map(len, trained)), 4))
    return losses


CHECKS: dict[str, Callable[[Path | None], dict[str, Any]]] = {
    "packing": packing,
    "dtypes": dtypes,
    "qlora": qlora,
    "uneven": uneven,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=CHECKS)
    parser.add_argument("--model", type=Path)
    options = parser.parse_args()
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    began = time.monotonic()
    found = CHECKS[options.name](options.model)
    print(json.dumps(found | {"seconds": round(time.monotonic() - began, 1)}), flush=True)


if __name__ == "__main__":
    main()
