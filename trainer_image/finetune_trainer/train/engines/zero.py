"""Strategy zero2: DeepSpeed shards gradients and optimizer states over the ranks."""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from finetune_trainer.tasks.base import Batch
from finetune_trainer.train.engines.engine import Loss, Named
from finetune_trainer.train.optimizers.adamw import MOMENTS

_LARGEST_BUCKET_ELEMENTS = 200_000_000
_HELD_GRADIENT_BYTES = 2 << 30
"""Up to this size whole gradients are kept until the last micro-batch and reduced once; larger ones are reduced and sharded in each."""


def config(*, trainable: int, max_grad_norm: float, bf16: bool, cuda: bool) -> dict[str, Any]:
    """DeepSpeed's configuration. `trainable` is a number of parameters. The optimizer is torch's own: nothing is compiled."""
    return {
        "train_micro_batch_size_per_gpu": 1,  # the batches are ours; DeepSpeed only wants a number
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**62,
        "bf16": {"enabled": bf16, "check_grad_overflow": False},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": {
            "stage": 2,
            "contiguous_gradients": True,
            "overlap_comm": cuda,
            "reduce_bucket_size": min(trainable, _LARGEST_BUCKET_ELEMENTS),
            "allgather_bucket_size": _LARGEST_BUCKET_ELEMENTS,
        },
    }


def compile_nothing() -> None:
    """Keep DeepSpeed from building code at run time, which takes a minute and a compiler that images lack."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # gloo does its work
    # ZeRO only asks whether the optimizer is a Muon, but importing the real one compiles its kernels, for seconds.
    name = "deepspeed.runtime.zero.muon.original_muon"
    if name not in sys.modules:
        stand_in = types.ModuleType(name)
        stand_in.MuonWithAuxAdam = type("MuonWithAuxAdam", (), {})  # type: ignore[attr-defined]
        stand_in.adam_update = stand_in.muon_update = None  # type: ignore[attr-defined]
        sys.modules[name] = stand_in


class Zero2Engine:
    """See `engine.Engine`."""

    def __init__(self, accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        engine, _ = accelerator.prepare(model, optimizer)
        self._engine = engine
        self._zero = engine.optimizer
        self._ranks = accelerator.num_processes
        self._device = accelerator.device
        self.module = engine.module
        self.name = type(engine).__name__
        self._parameters = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        self._make_states(0)
        self.even = 4 * sum(p.numel() for p in self._parameters.values()) > _HELD_GRADIENT_BYTES

    def accumulate(self, batches: Sequence[Callable[[], Batch]], loss: Loss, scale: float) -> torch.Tensor:
        total = torch.zeros((), device=self._device)
        with contextlib.nullcontext() if self.even else self._engine.coalesce_grad_reduction():
            for i, batch in enumerate(batches):
                if self.even:
                    self._engine.set_gradient_accumulation_boundary(i == len(batches) - 1)
                value = loss(self._engine, batch().to(self._device))
                self._engine.backward(value * (scale * self._ranks), scale_wrt_gas=False)  # it averages over ranks
                total += value.detach()
        return total

    def step(self, learning_rate: float) -> torch.Tensor | float:
        for group in self._zero.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        return self._engine.get_global_grad_norm()

    def export(self) -> Iterator[Named]:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        for name, parameter in self._parameters.items():
            yield "weights", name, safe_get_full_fp32_param(parameter).cpu()
            for moment in MOMENTS:
                yield moment, name, safe_get_full_optimizer_state(parameter, moment).cpu()

    @torch.no_grad()
    def restore(self, read: Callable[[str, str], torch.Tensor], steps: int) -> None:
        """Writes this rank's slices of the fp32 master and of the states, and the whole low-precision copy.

        `safe_set_full_fp32_param` would leave that copy stale.
        """
        self._make_states(steps)
        for name, parameter in self._parameters.items():
            weights = read("weights", name)
            parameter.copy_(weights)
            mapping = parameter._hp_mapping  # None where no part of this parameter is this rank's
            if mapping is None:
                continue
            here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
            flat = self._zero.single_partition_of_fp32_groups[mapping.param_group_index]
            targets = {"weights": flat.data} | {m: self._zero.optimizer.state[flat][m] for m in MOMENTS}
            for kind, target in targets.items():
                whole = weights if kind == "weights" else read(kind, name)
                target.narrow(0, here.start, here.numel).copy_(whole.flatten().narrow(0, there.start, there.numel))

    def _make_states(self, steps: int) -> None:
        """Empty states as after `steps` updates. Left to the first step, DeepSpeed would link those of the first parameter group alone, and none could be exported before it."""
        for flat in self._zero.single_partition_of_fp32_groups:
            self._zero.optimizer.state[flat] = {
                "step": torch.tensor(float(steps), device=flat.device),
                **{moment: torch.zeros_like(flat) for moment in MOMENTS},
            }
        self._zero._hp_optimizer_states_linked = False
        self._zero._lazy_init_hp_params_optimizer_state()
