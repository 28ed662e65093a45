"""The trainer's own step on a GPU that is not there: what it holds at its peak, against what the planner says."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from finetune_api.effective import resolve
from finetune_api.planner.facts import DataFacts, PlanFacts
from finetune_api.planner.memory import Memory, memory_of
from finetune_api.planner.shape import shape_of
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.model import attention, load, quantized
from finetune_trainer.model.adapt import adapt
from finetune_trainer.model.purpose import Purpose
from finetune_trainer.model.speed import speed_up
from finetune_trainer.model.wrapped import innermost
from finetune_trainer.tasks.base import Batch
from finetune_trainer.tasks.causal import CausalTask, packed, padded
from finetune_trainer.train.engines.choose import engine_of
from finetune_trainer.train.micro_batches import cut
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from benchmarks.plan.fake_gpu import Live, fake_gpu
from benchmarks.plan.gpu_cases import MODELS, GpuCase

STEPS = 2
"""The optimizer's states are made in the first."""


@dataclass(frozen=True)
class OnGpu:
    """Bytes: the peak of the second step, and what the planner says of each part. `at` is the operator that made the peak."""

    case: GpuCase
    measured: int
    memory: Memory
    at: str

    @property
    def predicted(self) -> int:
        """Without what no tensor holds: CUDA's context, and what the allocator cannot use."""
        return self.memory.total - self.memory.context - self.memory.fragmentation

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


def compare(case: GpuCase) -> OnGpu:
    spec, facts = planned(case)
    with fake_gpu() as live:
        measured = _peak(case, spec, live)
    return OnGpu(case, measured, memory_of(spec, facts), live.at)


def planned(case: GpuCase) -> tuple[FineTuneJobSpec, PlanFacts]:
    """The job of a case, and its numbers as prepare would have them."""
    place = {"uri": "pvc://claim/x"}
    spec = FineTuneJobSpec.model_validate(
        {
            "model": place,
            "method": {"type": case.method} | ({"lora": case.lora} if case.lora else {}),
            "data": {"train": [place]},
            "training": {"globalBatchSize": case.rows, "activationCheckpointing": "none"} | case.training,
            "compute": {"gpusPerNode": 1, "gpuType": "h200", "strategy": "ddp", "microBatchTokens": case.budget},
            "workspace": place,
            "output": place,
        }
    )
    tokens = 100 * case.rows * case.length
    data = DataFacts(rows=100 * case.rows, tokens=tokens, trained_tokens=tokens, longest=case.length)
    return resolve(spec), PlanFacts(model=shape_of(MODELS[case.model]), data=data)


def _peak(case: GpuCase, spec: FineTuneJobSpec, live: Live) -> int:
    device = torch.device("cuda", 0)
    net = adapt(_loaded(MODELS[case.model], spec, device), spec)
    net.train()
    speed_up(net, spec, device)
    engine = engine_of(spec, SimpleNamespace(rank=0, world_size=1, device=device), net)  # type: ignore[arg-type]
    attention.install()
    task = CausalTask(pad=0)
    task.packs = innermost(net).config._attn_implementation == "sdpa"  # what the probe at start finds on real weights
    task.way = "fused"
    lengths = np.full(case.rows, case.length)
    makers = [
        functools.partial(_batch, len(part), case.length, packs=task.packs)
        for part in cut(np.arange(case.rows), lengths, case.budget, packed=task.packs)
    ]
    for _ in range(STEPS):
        live.reset()
        engine.accumulate(makers, task.loss, 1.0)
        engine.step(1e-4)
    return live.peak


def _batch(rows: int, length: int, *, packs: bool) -> Batch:
    tokens, trained = [np.ones(length, dtype=np.int64)] * rows, [np.arange(1, length)] * rows
    return (packed if packs else padded)(tokens, trained, pad=0)


def _loaded(config: dict[str, Any], spec: FineTuneJobSpec, device: torch.device) -> nn.Module:
    """As `load.load` gives it, without files."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {name: value for name, value in config.items() if name != "model_type"}
    made = AutoConfig.for_model(config["model_type"], **settings)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(made, dtype=load.held_in(spec))
    model.requires_grad_(False)
    if spec.method.type == "qlora":
        _quantize(model, spec)
    model.finetune_loaded = load.Loaded(Path(), Purpose(), torch.bfloat16)
    return model


def _quantize(model: Any, spec: FineTuneJobSpec) -> None:
    """By bitsandbytes' own operators, which know what they give without values.

    Its class of parameters does not go with tensors that have none, so theirs are plain ones with the same attributes.
    """
    from bitsandbytes import functional
    from bitsandbytes.nn import Linear4bit
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    whole = quantized.left_whole(model, spec, classifies=False, trained=())
    settings = quantized.config(spec, load.held_in(spec), whole=whole)
    weights = {name: module.weight for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    biases = {name: module.bias for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    with unset_fake_temporarily():
        replace_with_bnb_linear(model, modules_to_not_convert=whole, quantization_config=settings)
    for name, module in model.named_modules():
        if not isinstance(module, Linear4bit):
            continue
        with (
            mock.patch.dict(functional.name2qmap, clear=True),
            mock.patch.object(functional, "create_dynamic_map", return_value=torch.zeros(256)),
        ):
            packed_weight, state = functional.quantize_4bit(
                weights.pop(name).detach(),
                compress_statistics=settings.bnb_4bit_use_double_quant,
                quant_type=settings.bnb_4bit_quant_type,
            )
        weight = nn.Parameter(packed_weight, requires_grad=False)
        weight.quant_state, weight.bnb_quantized = state, True  # type: ignore[attr-defined]
        weight.quant_type, weight.compress_statistics = state.quant_type, state.nested  # type: ignore[attr-defined]
        module.weight, module.bias = weight, biases[name]
