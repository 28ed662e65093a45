"""Two ranks load, adapt and shard models, and write down what they hold and what it took. Run as a script by test_sharded_start.py: rank, folder."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import transformers
from finetune_trainer.model import load as loading
from finetune_trainer.model import sharded
from finetune_trainer.model.adapt import adapt
from finetune_trainer.train.engines.choose import engine_of, place_of
from finetune_trainer.train.engines.room import returning_host_memory
from torch import nn
from torch.distributed.tensor import DTensor

from tests.trainer import engine_cells
from tests.trainer.model.conftest import CAUSAL, CLASSES, PAIRS, spec_of

PURPOSES = {"t5": PAIRS, "bart": PAIRS, "bert": CLASSES}
LORA = {"type": "lora"}
WHOLE = {"type": "lora", "lora": {"modulesToSave": ["embed_tokens"]}}
PROMPT = {"type": "prompt", "promptTuning": {"virtualTokens": 4}}
ADAPTED: list[tuple[str, dict[str, Any]]] = [
    ("tied-llama", WHOLE),
    ("tied-llama", {"type": "dora"}),
    ("tied-llama", PROMPT),
    ("mixtral", {"type": "full"}),
    ("gpt2", LORA),
    ("bert", LORA),
]
STARTED = [("tied-llama", WHOLE), ("mixtral", {"type": "full"}), ("bert", LORA)]
"""Of the adapted ones, those that an engine is built of."""
LARGE = [("fsdp2", "lora"), ("fsdp2", "full"), ("zero3", "lora"), ("zero3", "full"), ("zero2", "full")]


def resolved(method: dict[str, Any], strategy: str, precision: str) -> Any:
    return spec_of(
        method, compute={"device": "cpu", "strategy": strategy}, training={"precision": precision, "ema": 0.5}
    )


def loaded(base: Path, family: str, gang: Any) -> str:
    """How the weights that come in parts differ from those of a plain `from_pretrained`; nothing if they do not."""
    purpose = PURPOSES.get(family, CAUSAL)
    spec = resolved(LORA, "fsdp2", "bf16")
    torch.manual_seed(spec.training.seed)
    config = loading.configuration(base, spec, purpose)
    auto = loading.auto_class(purpose.task)
    plain = auto.from_pretrained(base, config=config, dtype=torch.bfloat16, ignore_mismatched_sizes=True)
    model = loading.load(base, spec, purpose, place=place_of(spec, gang))
    if getattr(model, "generation_config", None) != getattr(plain, "generation_config", None):
        return "other settings of generation"
    return different(plain, model)


def different(plain: nn.Module, model: nn.Module) -> str:
    for kind in ("named_parameters", "named_buffers"):
        expected, found = (dict(getattr(each, kind)(remove_duplicate=False)) for each in (plain, model))
        if expected.keys() != found.keys():
            return f"names: {sorted(expected.keys() ^ found.keys())}"
        for name, tensor in expected.items():
            mine = sharded.whole(found[name]).detach()
            if mine.dtype != tensor.dtype or not torch.equal(mine, tensor):
                return f"{name}: {mine.dtype} {list(mine.shape)} for {tensor.dtype} {list(tensor.shape)}"
    return ""


def adapted(base: Path, family: str, method: dict[str, Any], strategy: str, gang: Any) -> str:
    """The same for adapters and all; then for what an engine made of it."""
    purpose = PURPOSES.get(family, CAUSAL)
    spec = resolved(method, strategy, "fp32")
    plain = adapt(loading.load(base, spec, purpose), spec)
    model = adapt(loading.load(base, spec, purpose, place=place_of(spec, gang)), spec)
    wrong = different(plain, model)
    if wrong or (family, method) not in STARTED:
        return wrong
    engine = engine_of(spec, gang, model)
    found = dict(engine.module.named_parameters())
    for name, parameter in plain.named_parameters():
        mine = gathered(found[name])
        if not torch.equal(mine, parameter) or found[name].requires_grad != parameter.requires_grad:
            return f"{name} in {engine.name}"
    for name, buffer in plain.named_buffers():
        if not torch.equal(dict(engine.module.named_buffers())[name], buffer):
            return f"{name} in {engine.name}"
    engine.accumulate([Rows], lambda net, rows: net(input_ids=rows.ids).logits.square().sum(), 0.1)
    engine.step(1e-2)
    after = engine_cells.exported(engine, share=True)
    moved = False
    for name, before in plain.named_parameters():
        if before.requires_grad:
            weights = after["weights", name]
            moved |= not torch.equal(weights, before)
            if not torch.allclose(after["ema", name], (before + weights) / 2, atol=1e-6):
                return f"the moving average of {name}"
    return "" if moved else "nothing moved"


def gathered(parameter: Any) -> torch.Tensor:
    if not hasattr(parameter, "ds_id"):
        return sharded.whole(parameter).detach()
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().clone()


def start(base: Path, strategy: str, method: str, gang: Any) -> dict[str, float]:
    """Peak of resident memory beyond what there was before, and what this rank holds in the end: in bytes, and elements of the model."""
    spec = resolved({"type": method}, strategy, "bf16")
    spec.training.ema = None
    begin = memory(reset=True)
    with returning_host_memory():
        net = adapt(loading.load(base, spec, CAUSAL, place=place_of(spec, gang)), spec)
        elements = sum(p.numel() for p in net.parameters())
        engine = engine_of(spec, gang, net)
    del net
    peak = memory()
    held = 0
    for parameter in engine.module.parameters():
        part = getattr(parameter, "ds_tensor", None)
        held += (
            parameter.to_local() if isinstance(parameter, DTensor) else parameter if part is None else part
        ).numel()
    return {"peak": peak - begin, "held": held, "elements": elements}


class Rows:
    """A batch."""

    ids = torch.arange(1, 9)[None]

    def to(self, device: torch.device) -> Rows:
        return self


def memory(*, reset: bool = False) -> int:
    """Peak of resident bytes since the last reset, or at it."""
    if reset:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "DS_ACCELERATOR": "cpu"}
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    gang: Any = SimpleNamespace(rank=rank, world_size=2, device=torch.device("cpu"))
    bases = {name: Path(path) for name, path in json.loads(os.environ["BASES"]).items()}
    found: dict[str, Any] = {}

    def tried(cell: str, act: Any, *what: Any) -> None:
        try:
            found[cell] = act(*what, gang)
        except Exception:
            found[cell] = traceback.format_exc()

    for family, base in bases.items():
        if family != "large":
            tried(family, loaded, base, family)
    for family, method in ADAPTED:
        for strategy in ("zero3", "fsdp2") if (family, method) in STARTED else ("fsdp2",):
            tried(f"{family}/{method['type']}/{strategy}", adapted, bases[family], family, method, strategy)
    for strategy, method in LARGE:  # at last: what is imported along the way counts no more
        tried(f"{strategy}/{method}", start, bases["large"], strategy, method)
    (folder / f"rank-{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
