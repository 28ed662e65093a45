"""Strategies zero1, zero2, zero3: DeepSpeed shards optimizer states, gradients too, weights too over the ranks.

Here is what the stages share. DeepSpeed's global state is left alone: it is given a process group that exists, and no launcher.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from finetune_api.compute import OffloadSpec
from torch import nn
from torch.distributed.tensor import DTensor

from finetune_trainer.errors import BadInput, StageError
from finetune_trainer.model import sharded
from finetune_trainer.tasks.base import Batch
from finetune_trainer.train import ema
from finetune_trainer.train.engines.engine import WEIGHTS, Fragment, Loss, ReadState, ReadWeights, Setting
from finetune_trainer.train.optimizers.adamw import MOMENTS
from finetune_trainer.train.optimizers.groups import by_name, of_names, set_learning_rate
from finetune_trainer.train.optimizers.guard import Guard
from finetune_trainer.train.optimizers.recipe import Group, Recipe

_LARGEST_BUCKET_ELEMENTS = 200_000_000
_HELD_GRADIENT_BYTES = 2 << 30
"""Up to this size whole gradients are kept until the last micro-batch and reduced once; larger ones are reduced and sharded in each."""


def config(setting: Setting, *, stage: int, trainable: int) -> dict[str, Any]:
    """DeepSpeed's configuration. `trainable` is a number of parameters. The optimizer is torch's own: nothing is compiled.

    Raises BadInput (InvalidSpec) for NVMe where DeepSpeed's op for it was not built.
    """
    cuda = setting.device.type == "cuda"
    zero: dict[str, Any] = {
        "stage": stage,
        "contiguous_gradients": True,
        "overlap_comm": cuda,
        "reduce_bucket_size": min(trainable, _LARGEST_BUCKET_ELEMENTS),
        "allgather_bucket_size": _LARGEST_BUCKET_ELEMENTS,
    }
    made: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # the batches are ours; DeepSpeed only wants a number
        "gradient_accumulation_steps": 1,
        "gradient_clipping": setting.max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**62,
        "bf16": {"enabled": setting.bf16, "check_grad_overflow": False},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": zero,
    }
    offload = setting.offload or OffloadSpec()
    for name, target in (("offload_optimizer", offload.optimizer), ("offload_param", offload.parameters)):
        if target in (None, "none"):
            continue
        zero[name] = {"device": target, "pin_memory": cuda}
        if target == "nvme":
            _need_async_io()
            zero[name]["nvme_path"] = offload.nvme_path
            made["aio"] = {"block_size": 1 << 20, "queue_depth": 32, "overlap_events": True}
    return made


def _need_async_io() -> None:
    from deepspeed.git_version_info import installed_ops

    if not installed_ops.get("async_io"):
        raise BadInput(
            "spec.compute.offload: nvme needs DeepSpeed's async_io, with which this image was not built",
            code="InvalidSpec",
            remedy="offload to cpu, or build the image with DS_BUILD_AIO=1 and libaio",
        )


def compile_nothing() -> None:
    """Keep DeepSpeed from building code at run time, which takes a minute in every process, and from talking."""
    import deepspeed
    from deepspeed.runtime import bf16_optimizer

    bf16_optimizer.see_memory_usage = lambda *_, **__: None  # it insists

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # gloo does its work
    # ZeRO only asks whether the optimizer is a Muon, but importing the real one compiles its kernels, for seconds.
    name = "deepspeed.runtime.zero.muon.original_muon"
    if name not in sys.modules:
        stand_in = types.ModuleType(name)
        stand_in.MuonWithAuxAdam = type("MuonWithAuxAdam", (), {})  # type: ignore[attr-defined]
        stand_in.adam_update = stand_in.muon_update = None  # type: ignore[attr-defined]
        sys.modules[name] = stand_in


@dataclass(frozen=True, slots=True)
class Slice:
    """`length` elements from `start` of a flattened parameter, which are those from `here` of the flat tensor of `group`."""

    name: str
    shape: tuple[int, ...]
    start: int
    length: int
    group: int
    here: int


class ZeroEngine:
    """See `engine.Engine`. Optimizers must be elementwise, for they see flat slices of all weights together.

    A stage says where this rank's slices of the named tensors are (`_slices`) and how new fp32 weights reach the forward.
    """

    stage: int

    def __init__(self, setting: Setting, model: nn.Module, recipe: Recipe, groups: list[Group]) -> None:
        compile_nothing()
        import deepspeed

        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        elements = sum(p.numel() for p in trainable.values())
        del trainable
        named_groups = by_name(groups, model)
        how = config(setting, stage=self.stage, trainable=elements)
        exact = self._place(setting, model, how)  # DeepSpeed begins with what it has rounded to bf16
        engine, _, _, _ = deepspeed.initialize(
            model=model,
            optimizer=recipe.build(of_names(named_groups, model)),
            config=how,
            dist_init_required=False,
        )
        self._engine = engine
        self._zero = engine.optimizer
        self._setting = setting
        self._ranks = setting.world_size
        self._device = setting.device
        self.module: nn.Module = engine.module
        self.name = type(engine).__name__
        if engine.zero_optimization_stage() != self.stage:
            raise StageError(f"DeepSpeed runs stage {engine.zero_optimization_stage()} instead of {self.stage}")
        self._guard = Guard(self._zero.optimizer)
        self._guard.watch()
        self.optimizer = recipe.name
        self._parameters = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        self._holds = 4 * elements <= _HELD_GRADIENT_BYTES
        if setting.bf16 and self._coalesces:
            for parameter in self._parameters.values():
                parameter.grad_dtype = torch.float32  # micro-batches are summed in it, and rounded once
        self.state_bytes = 4 * elements * (1 + len(MOMENTS) + (setting.ema is not None))
        if exact:
            self._begin_with(exact)
            self.refresh()
            del exact
        self._ema = ema.Ema(self._flats(), setting.ema) if setting.ema else None

    even: bool
    module_communicates: bool

    def accumulate(self, batches: Sequence[Callable[[], Batch]], loss: Loss, scale: float) -> torch.Tensor:
        total = torch.zeros((), device=self._device)
        with self._engine.coalesce_grad_reduction() if self._coalesces else contextlib.nullcontext():
            for i, batch in enumerate(batches):
                if not self._coalesces:
                    self._engine.set_gradient_accumulation_boundary(i == len(batches) - 1)
                value = loss(self._engine, batch().to(self._device))
                self._engine.backward(value * (scale * self._ranks), scale_wrt_gas=False)  # it averages over ranks
                total += value.detach()
        return total

    def step(self, learning_rate: float) -> torch.Tensor | float:
        set_learning_rate(self._zero.optimizer, learning_rate)
        self._engine.step()
        if self._ema is not None:
            self._ema.update()
        norm = self._engine.get_global_grad_norm()
        # Where DeepSpeed left this step out itself, it would take those that follow.
        self._guard.see(torch.as_tensor(norm, device=self._device))
        return norm

    @torch.no_grad()
    def export(self) -> Iterator[Fragment]:
        for one in self._slices(keep=False):
            for kind in self._kinds():
                flat = self._flat(one.group, kind)
                values = torch.zeros(one.length) if flat is None else flat.detach().narrow(0, one.here, one.length)
                yield Fragment(kind, one.name, one.shape, one.start, values)

    @torch.no_grad()
    def restore(self, read: ReadState, steps: int) -> None:
        for flat in self._flats():
            self._zero.optimizer.state[flat] = {
                "step": torch.tensor(float(steps), device=flat.device),
                **{moment: torch.zeros_like(flat) for moment in MOMENTS},
            }
        self._write(read, self._kinds())

    @torch.no_grad()
    def load(self, read: ReadWeights) -> None:
        self._write(lambda _, name, start, length: read(name, start, length), (WEIGHTS,))

    def _write(self, read: ReadState, kinds: Sequence[str]) -> None:
        """Into the fp32 master and the states. `safe_set_full_fp32_param` would want whole tensors."""
        for one in self._slices(keep=True):
            for kind in kinds:
                flat = self._flat(one.group, kind)
                assert flat is not None
                flat.detach().narrow(0, one.here, one.length).copy_(read(kind, one.name, one.start, one.length))

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        return ema.in_force(self._ema, after=self.refresh)

    def _place(self, setting: Setting, model: nn.Module, how: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Collective: bring weights from `model.sharded` to where the forward wants them. In bf16 runs, what was trainable before it was rounded."""
        raise NotImplementedError

    def _begin_with(self, exact: dict[str, torch.Tensor]) -> None:
        """Collective: what `_place` gave becomes the master weights, from which `refresh` makes those of the forward."""
        raise NotImplementedError

    def _kinds(self) -> tuple[str, ...]:
        return (WEIGHTS, *((ema.KIND,) if self._ema is not None else ()), *MOMENTS)

    def _flat(self, index: int, kind: str) -> torch.Tensor | None:
        """This rank's slice of the group `index`; None for states that no step has made yet."""
        if kind == ema.KIND:
            assert self._ema is not None
            return self._ema.averages[index]
        flat = self._flats()[index]
        return flat if kind == WEIGHTS else self._zero.optimizer.state.get(flat, {}).get(kind)

    @property
    def _coalesces(self) -> bool:
        return self._holds

    def _flats(self) -> list[torch.Tensor]:
        """This rank's fp32 master weights, a flat tensor for each group."""
        raise NotImplementedError

    def _slices(self, *, keep: bool) -> Iterator[Slice]:
        """What of each trained parameter is this rank's. Where it comes from a disk, changes are written back if they are to be kept."""
        raise NotImplementedError

    def refresh(self) -> None:
        raise NotImplementedError


class FlatZeroEngine(ZeroEngine):
    """Stages 1 and 2: every rank holds whole weights for the forward, and a slice of everything else."""

    module_communicates = False

    def __init__(self, setting: Setting, model: nn.Module, recipe: Recipe, groups: list[Group], *, stage: int) -> None:
        self.stage = stage
        super().__init__(setting, model, recipe, groups)
        self.even = stage == 2 and not self._holds

    @torch.no_grad()
    def _place(self, setting: Setting, model: nn.Module, how: dict[str, Any]) -> dict[str, torch.Tensor]:
        exact: dict[str, torch.Tensor] = {}

        def place(name: str, parameter: nn.Parameter) -> nn.Parameter:
            if setting.bf16 and parameter.requires_grad:
                exact[name] = parameter.detach()
            if not isinstance(parameter, DTensor):
                return parameter
            made = sharded.whole(parameter).to(torch.bfloat16 if setting.bf16 else parameter.dtype)
            return nn.Parameter(made, requires_grad=parameter.requires_grad)

        sharded.replace(model, place)
        return exact

    @torch.no_grad()
    def _begin_with(self, exact: dict[str, torch.Tensor]) -> None:
        mine = {one.name: one for one in self._slices(keep=True)}
        for name in list(exact):
            values = sharded.whole(exact.pop(name)).flatten()
            if one := mine.get(name):
                target = self._flats()[one.group].detach().narrow(0, one.here, one.length)
                target.copy_(values[one.start : one.start + one.length])

    @property
    def _coalesces(self) -> bool:
        # Stage 1 reduces once a step anyway. DeepSpeed's optimizer for it in bf16 knows no coalescing.
        return self._holds and hasattr(self._zero, "_coalesce_grad_reduction")

    def _flats(self) -> list[torch.Tensor]:
        ours = getattr(self._zero, "single_partition_of_fp32_groups", None)
        return self._zero.fp32_groups_flat_partition if ours is None else ours

    def _slices(self, *, keep: bool) -> Iterator[Slice]:
        for name, parameter in self._parameters.items():
            mapping = parameter._hp_mapping
            if mapping is not None:  # None where no part of this parameter is this rank's
                here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
                yield Slice(
                    name, tuple(parameter.shape), there.start, here.numel, mapping.param_group_index, here.start
                )

    @torch.no_grad()
    def refresh(self) -> None:
        self._zero.update_lp_params()

    def unsharded(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def whole(self) -> nn.Module:
        return self.module
