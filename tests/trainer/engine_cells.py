"""Every engine in a gang of two, cell by cell in the same processes, beside the single process that it must equal.

Run as a script by test_engines.py: rank, folder of results. Each cell's largest errors are written down, never judged here.
"""

from __future__ import annotations

import datetime
import functools
import gc
import itertools
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812 (its usual name)
from finetune_api.compute import OffloadSpec
from finetune_trainer.tasks.base import Batch
from finetune_trainer.train.engines import zero
from finetune_trainer.train.engines.ddp import DdpEngine
from finetune_trainer.train.engines.engine import Engine, Setting
from finetune_trainer.train.engines.fsdp2 import Fsdp2Engine
from finetune_trainer.train.engines.zero3 import Zero3Engine
from finetune_trainer.train.optimizers.choose import recipe_of
from finetune_trainer.train.optimizers.groups import groups
from torch import nn

from tests.trainer.engine_models import VOCABULARY, model_of

STRATEGIES = ("ddp", "zero1", "zero2", "zero3", "fsdp2")
METHODS = {
    "causal-lm": ("frozen", "dora", "prompt", "prefix", "qlora"),
    "seq2seq-lm": ("lora",),
    "sequence-classification": ("full",),
}
"""Of which each strategy takes a step, beside the chains."""

CHAINS = ("full", "lora")
"""Methods of causal-lm that go from strategy to strategy by their checkpoints."""

OFFLOADS = {
    "zero1": OffloadSpec(optimizer="cpu"),
    "zero2": OffloadSpec(optimizer="cpu"),
    "zero3": OffloadSpec(optimizer="cpu", parameters="cpu"),
    "zero3 weights": OffloadSpec(parameters="cpu"),
    "zero3 states": OffloadSpec(optimizer="cpu"),
    "fsdp2": OffloadSpec(optimizer="cpu", parameters="cpu"),
}
STEPS = len(STRATEGIES) + 1
ROWS = 8
_RATE = 0.01
_DECAY = 0.1

Weights = dict[tuple[str, str], torch.Tensor]


def cells() -> list[tuple[str, str, str]]:
    """(task, method, strategy) of which one step is taken."""
    return [
        (task, method, strategy)
        for task, methods in METHODS.items()
        for method in methods
        for strategy in STRATEGIES
        if strategy != "zero1"  # which is zero2 but for when it reduces
        and (method != "qlora" or strategy not in ("zero3", "fsdp2"))  # packed weights cannot be sharded
    ]


def engine_of(strategy: str, setting: Setting, model: nn.Module, optimizer: str = "adamw") -> Engine:
    """As `train.engines.choose`, with weight decay and a LoRA+ ratio."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    made = groups(trained, weight_decay=_DECAY, plus_ratio=4.0)
    kind = recipe_of(optimizer, model)
    if strategy == "ddp":
        return DdpEngine(setting, model, kind, made)
    if strategy == "fsdp2":
        return Fsdp2Engine(setting, model, kind, made)
    if strategy == "zero3":
        return Zero3Engine(setting, model, kind, made)
    return zero.FlatZeroEngine(setting, model, kind, made, stage=int(strategy[-1]))


def setting_of(world_size: int, **more: Any) -> Setting:
    rank = dist.get_rank() if world_size > 1 else 0
    how = {"bf16": False, "max_grad_norm": 0.05, "ema": 0.5} | more
    return Setting(rank=rank, world_size=world_size, device=torch.device("cpu"), **how)


def step(engine: Engine, task: str, number: int, *, spoils: bool = False) -> tuple[float, float]:
    """One step over the same rows at every world size: loss and norm of the gradients. Ranks cut their rows differently.

    `spoils`: the last rank's loss is no number.
    """
    rows = rows_of(number)
    world, rank = (dist.get_world_size(), dist.get_rank()) if sharing(engine) else (1, 0)
    mine = rows[rank::world]
    count = 2 if engine.even else 1 + rank * 2
    parts = [part for part in mine.tensor_split(count) if len(part)]
    makers: list[Callable[[], Batch]] = [lambda part=part: batch_of(task, part) for part in parts]
    engine.module.train()
    scale = 1.0 / 100.0
    factor = float("nan") if spoils and rank == world - 1 else 1.0
    total = engine.accumulate(makers, lambda model, batch: loss_of(task, model, batch) * factor, scale)
    if world > 1:
        dist.all_reduce(total)
    return float(total) * scale, float(engine.step(_RATE / number))


def sharing(engine: Engine) -> bool:
    return engine.name != "single process"


def rows_of(number: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randint(1, VOCABULARY, (ROWS, 11), generator=generator)


def batch_of(task: str, rows: torch.Tensor) -> Batch:
    if task == "causal-lm":
        return Batch({"input_ids": rows}, rows[:, 1:])
    if task == "seq2seq-lm":
        inputs = {"input_ids": rows[:, :6], "decoder_input_ids": F.pad(rows[:, 6:-1], (1, 0))}
        return Batch(inputs, rows[:, 6:])
    return Batch({"input_ids": rows}, rows.sum(dim=1) % 3)


def loss_of(task: str, model: nn.Module, batch: Batch) -> torch.Tensor:
    more = {} if task == "sequence-classification" else {"use_cache": False}
    logits = model(**batch.inputs, **more).logits.float()
    if task == "causal-lm":
        logits = logits[:, -batch.inputs["input_ids"].shape[1] : -1]
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), batch.labels.reshape(-1), reduction="sum")


def exported(engine: Engine, *, share: bool) -> Weights:
    """Everything by kind and name, on every rank, put together from what each owns. No element is owned twice, or by none."""
    mine = [replace(one, values=one.values.float().cpu().clone()) for one in engine.export()]
    parts = [mine] * (dist.get_world_size() if share else 1)
    if share:
        dist.all_gather_object(parts, mine)
        largest = max(one.values.numel() for part in parts for one in part)
        sizes = [sum(one.values.numel() for one in part) for part in parts]
        assert max(sizes) - min(sizes) <= max(largest, 64 * len(mine)), f"the ranks' shares are uneven: {sizes}"
    found: Weights = {}
    for one in itertools.chain(*parts):
        whole = found.setdefault((one.kind, one.name), torch.full((torch.Size(one.shape).numel(),), float("nan")))
        place = whole[one.start : one.start + one.values.numel()]
        assert place.isnan().all(), f"two ranks own a part of {one.kind} of {one.name}"
        place.copy_(one.values)
        if not one.values.isfinite().all():
            raise AssertionError(f"{one.kind} of {one.name} is not finite")
    assert not any(whole.isnan().any() for whole in found.values()), "no rank owns a part of a tensor"
    shapes = {(one.kind, one.name): one.shape for one in itertools.chain(*parts)}
    assert sum(whole.nbytes for whole in found.values()) == engine.state_bytes
    return {key: whole.view(shapes[key]) for key, whole in found.items()}


def restore(engine: Engine, source: Weights, steps: int) -> int:
    """From whole tensors. Returns how many elements the engine read."""
    taken = 0

    def read(kind: str, name: str, start: int, length: int) -> torch.Tensor:
        nonlocal taken
        taken += length
        return source[kind, name].flatten()[start : start + length]

    engine.restore(read, steps)
    engine.refresh()
    return taken


def difference(mine: Weights, theirs: Weights) -> float:
    """The largest over all tensors, relative to the largest value in each."""
    assert mine.keys() == theirs.keys(), sorted(mine.keys() ^ theirs.keys())[:4]
    worst = 0.0
    for key, tensor in mine.items():
        other = theirs[key]
        assert tensor.shape == other.shape, (key, tensor.shape, other.shape)
        worst = max(worst, float((tensor - other).abs().max() / (other.abs().max() + 1e-12)))
    return worst


class Alone:
    """The undisturbed single process: what each step gives, and where it leads."""

    def __init__(self, task: str, method: str, steps: int) -> None:
        engine = engine_of("ddp", setting_of(1), model_of(task, method))
        self.said: list[tuple[float, float]] = []
        self.after: list[Weights] = [exported(engine, share=False)]
        for number in range(1, steps + 1):
            self.said.append(step(engine, task, number))
            self.after.append(exported(engine, share=False))


@functools.cache
def alone_with(method: str) -> Alone:
    """Of causal-lm, through all steps, once for everything that looks at some of them."""
    return Alone("causal-lm", method, STEPS)


def chain(method: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each strategy begins anew, then goes on from where the one before it left off; at last a single process does."""
    alone = alone_with(method)
    before = alone.after[0]
    for done, strategy in enumerate((*STRATEGIES, "single")):
        share = strategy != "single"
        try:
            engine = engine_of(
                strategy if share else "ddp", setting_of(2 if share else 1), model_of("causal-lm", method)
            )
            report: dict[str, Any] = {"even": engine.even, "communicates": engine.module_communicates}
            if strategy == "fsdp2":
                report["sharded"] = all(type(p).__name__ == "DTensor" for p in engine.module.parameters())
            report["first"] = _compared(step(engine, "causal-lm", 1), alone.said[0])
            report["first weights"] = difference(exported(engine, share=share), alone.after[1])
            taken = restore(engine, before, done)
            report["taken"] = taken * 4 / engine.state_bytes
            report["next"] = _compared(step(engine, "causal-lm", done + 1), alone.said[done])
            before = exported(engine, share=share)
            report["next weights"] = difference(before, alone.after[done + 1])
            report |= _averages(engine, share)
        except Exception:
            report = {"error": traceback.format_exc()}
            before = alone.after[done + 1]
        yield strategy, report
        engine = None  # type: ignore[assignment]
        gc.collect()


def single_step(task: str, method: str, alone: Alone, strategy: str) -> dict[str, Any]:
    try:
        engine = engine_of(strategy, setting_of(2, ema=None), model_of(task, method))
        first = _compared(step(engine, task, 1), alone.said[0])
        expected = {key: value for key, value in alone.after[1].items() if key[0] != "ema"}
        return {"first": first, "first weights": difference(exported(engine, share=True), expected)}
    except Exception:
        return {"error": traceback.format_exc()}


def _compared(mine: tuple[float, float], theirs: tuple[float, float]) -> list[float]:
    return [abs(a - b) / abs(b) for a, b in zip(mine, theirs, strict=True)]


@torch.no_grad()
def _averages(engine: Engine, share: bool) -> dict[str, Any]:
    """Outputs with weights, with averages, with weights again; and with whole weights on every rank."""
    batch = batch_of("causal-lm", rows_of(99))
    engine.module.eval()

    def out() -> torch.Tensor:
        return engine.module(**batch.inputs).logits.float()

    plain = out()
    with engine.averaged():
        average = out()
    again = out()
    with engine.unsharded():
        communicates = engine.module_communicates
        if not communicates and share and dist.get_rank() == 1:
            out()  # once more than rank 0, which would hang if it communicated
        whole = out()
    return {
        "moved": float((plain - average).abs().max()),
        "came back": float((plain - again).abs().max()),
        "unsharded": float((plain - whole).abs().max()),
        "communicates unsharded": communicates,
    }


def offloads() -> Iterator[tuple[str, dict[str, Any]]]:
    """Optimizer states and weights on the host."""
    alone = alone_with("full")
    for strategy, offload in OFFLOADS.items():
        try:
            setting = setting_of(2, offload=offload)
            engine = engine_of(strategy.split()[0], setting, model_of("causal-lm", "full"))
            report: dict[str, Any] = {"first": _compared(step(engine, "causal-lm", 1), alone.said[0])}
            restore(engine, alone.after[3], 3)
            report["next"] = _compared(step(engine, "causal-lm", 4), alone.said[3])
            report["next weights"] = difference(exported(engine, share=True), alone.after[4])
        except Exception:
            report = {"error": traceback.format_exc()}
        yield strategy, report


def half() -> Iterator[tuple[str, dict[str, Any]]]:
    """bf16 compute: the first loss is near, and what was restored is exact."""
    for method in ("full", "lora"):
        alone = alone_with(method)
        for strategy in STRATEGIES if method == "full" else ("zero2", "zero3", "fsdp2"):
            try:
                engine = engine_of(strategy, setting_of(2, bf16=True), model_of("causal-lm", method))
                report: dict[str, Any] = {"begin": difference(exported(engine, share=True), alone.after[0])}
                report["first"] = _compared(step(engine, "causal-lm", 1), alone.said[0])
                report["first weights"] = difference(exported(engine, share=True), alone.after[1])
                restore(engine, alone.after[3], 3)
                report["restored"] = difference(exported(engine, share=True), alone.after[3])
                report["next"] = _compared(step(engine, "causal-lm", 4), alone.said[3])
                if method == "full":
                    once, often = (_moments(engine, alone, micro_batches) for micro_batches in (1, 16))
                    report["summed"] = float((often - once).norm() / once.norm())
            except Exception:
                report = {"error": traceback.format_exc()}
            yield f"{method}/{strategy}", report


def _moments(engine: Engine, alone: Alone, micro_batches: int) -> torch.Tensor:
    """First moments after one step over many rows, cut into so many micro-batches."""
    restore(engine, alone.after[0], 0)
    rows = torch.cat([rows_of(number) for number in range(1, 5)]).chunk(2)[dist.get_rank()]
    makers = [lambda part=part: batch_of("causal-lm", part) for part in rows.tensor_split(micro_batches)]
    engine.accumulate(makers, lambda model, batch: loss_of("causal-lm", model, batch), 0.01)
    engine.step(_RATE)
    found = exported(engine, share=True)
    return torch.cat([tensor.flatten() for (kind, _), tensor in found.items() if kind == "exp_avg"])


def held() -> Iterator[tuple[str, dict[str, Any]]]:
    """Gradients too large to be held are reduced and sharded in each micro-batch."""
    from finetune_trainer.train.engines import fsdp2

    alone = alone_with("full")
    zero._HELD_GRADIENT_BYTES = fsdp2._HELD_GRADIENT_BYTES = 0
    for strategy in STRATEGIES[1:]:
        try:
            engine = engine_of(strategy, setting_of(2), model_of("causal-lm", "full"))
            report: dict[str, Any] = {"even": engine.even}
            report["first"] = _compared(step(engine, "causal-lm", 1), alone.said[0])
            report["next"] = _compared(step(engine, "causal-lm", 2), alone.said[1])
            report["next weights"] = difference(exported(engine, share=True), alone.after[2])
        except Exception:
            report = {"error": traceback.format_exc()}
        yield strategy, report


def spoilt() -> Iterator[tuple[str, dict[str, Any]]]:
    """A step whose gradients are not finite, and one after it, leave everything as it was."""
    for bf16, strategy in itertools.product((False, True), STRATEGIES):
        try:
            engine = engine_of(strategy, setting_of(2, ema=None, bf16=bf16), model_of("causal-lm", "lora"))
            step(engine, "causal-lm", 1)
            before = exported(engine, share=True)
            norm = step(engine, "causal-lm", 2, spoils=True)[1]
            step(engine, "causal-lm", 3)
            report: dict[str, Any] = {"norm": str(norm), "moved": difference(exported(engine, share=True), before)}
        except Exception:
            report = {"error": traceback.format_exc()}
        yield f"{'bf16' if bf16 else 'fp32'}/{strategy}", report


def main(rank: int, folder: Path) -> None:
    print(f"imports took {time.process_time():.1f} s")
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_SIZE": "2",
        "DS_ACCELERATOR": "cpu",
    }
    os.environ["LOCAL_WORLD_SIZE"] = "2"
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=datetime.timedelta(minutes=5)
    )
    gc.freeze()  # what was imported need not be gone through when an engine is cleared away
    results: dict[str, Any] = {}
    for method in CHAINS:
        results |= {f"causal-lm/{method}/{strategy}": report for strategy, report in chain(method)}
    for (task, method), strategies in itertools.groupby(cells(), key=lambda cell: cell[:2]):
        alone = Alone(task, method, steps=1)
        for _, _, strategy in strategies:
            results[f"{task}/{method}/{strategy}"] = single_step(task, method, alone, strategy)
    for name, run in (("offload", offloads), ("half", half), ("spoilt", spoilt), ("held", held)):
        results |= {f"{name}/{cell}": report for cell, report in run()}
    print(f"all of it took {time.process_time():.1f} s")
    (folder / f"rank-{rank}.json").write_text(json.dumps(results))
    dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
