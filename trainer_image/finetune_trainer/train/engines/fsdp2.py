"""Strategy fsdp2: PyTorch's own full sharding, by block. Weights, gradients and optimizer states are DTensors, one for each parameter.

Master weights stay in the precision they were loaded in (fp32 for all that is trained); in bf16 runs they are rounded
when they are gathered, and gradients are reduced in fp32. Weights that come sharded (see model.sharded) are never whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from finetune_trainer.model import sharded
from finetune_trainer.tasks.base import Batch
from finetune_trainer.train import ema
from finetune_trainer.train.engines.engine import WEIGHTS, Loss, Named, Setting
from finetune_trainer.train.engines.plain import with_plain_parameters
from finetune_trainer.train.engines.room import fits_everywhere
from finetune_trainer.train.optimizers.adamw import MOMENTS
from finetune_trainer.train.optimizers.groups import by_name, of_names, set_learning_rate
from finetune_trainer.train.optimizers.guard import Guard
from finetune_trainer.train.optimizers.recipe import Group, Recipe

_HELD_GRADIENT_BYTES = 2 << 30
"""Up to this size whole gradients are kept until the last micro-batch and reduced once."""


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The layers of the model: members of its outermost lists of modules."""
    found: list[nn.Module] = []
    for child in model.children():
        found += list(child) if isinstance(child, nn.ModuleList) else blocks_of(child)
    return found


class Fsdp2Engine:
    """See `engine.Engine`. Optimizers must be elementwise."""

    even = True

    def __init__(self, setting: Setting, model: nn.Module, recipe: Recipe, groups: list[Group]) -> None:
        self._setting = setting
        self._device = setting.device
        self._mesh = init_device_mesh(setting.device.type, (setting.world_size,))
        offload = setting.offload
        self._offloads = offload is not None and "cpu" in (offload.optimizer, offload.parameters)
        policy = OffloadPolicy()
        if self._offloads:
            policy = CPUOffloadPolicy(pin_memory=setting.device.type == "cuda")
        precision = MixedPrecisionPolicy()
        if setting.bf16:
            precision = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        named_groups = by_name(groups, model)
        parts = sharded.without_parts(model)
        for block in [*blocks_of(model), model]:
            fully_shard(block, mesh=self._mesh, mp_policy=precision, offload_policy=policy)
        self._fill(model, parts)
        for part in model.modules():
            if isinstance(part, FSDPModule):
                part.set_gradient_divide_factor(1.0)  # the sum over ranks is wanted
                part.set_force_sum_reduction_for_comms(True)  # gloo knows nothing else
        self.module = model
        self.name = type(model).__mro__[1].__name__
        self._parameters: dict[str, DTensor] = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._optimizer = recipe.build(of_names(named_groups, model))
        self._guard = Guard(self._optimizer)
        self.optimizer = recipe.name
        elements = sum(p.numel() for p in self._parameters.values())
        self._holds = 4 * elements <= _HELD_GRADIENT_BYTES
        self._ema = ema.Ema(self._locals(), setting.ema) if setting.ema else None
        self.state_bytes = 4 * elements * (1 + len(MOMENTS) + (setting.ema is not None))
        self.module_communicates = setting.world_size > 1

    @torch.no_grad()
    def _fill(self, model: nn.Module, parts: dict[str, torch.Tensor]) -> None:
        """Parameters without values get this rank's parts, which are cut as theirs. Buffers have their values."""

        def fill(name: str, parameter: nn.Parameter) -> nn.Parameter:
            if name not in parts:
                return parameter
            part = parts.pop(name)
            filled = nn.Parameter(torch.empty_like(parameter, device=part.device), parameter.requires_grad)
            filled.to_local().copy_(part)
            return filled

        sharded.replace(model, fill)
        for part in model.modules():
            if isinstance(part, FSDPModule):
                part._apply(
                    torch.Tensor.detach, recurse=False
                )  # fully_shard pads new parts then, else in the first forward

    def accumulate(self, batches: Sequence[Callable[[], Batch]], loss: Loss, scale: float) -> torch.Tensor:
        total = torch.zeros((), device=self._device)
        for i, batch in enumerate(batches):
            self.module.set_requires_gradient_sync(not self._holds or i == len(batches) - 1)
            value = loss(self.module, batch().to(self._device))
            (value * scale).backward()
            total += value.detach()
        return total

    def step(self, learning_rate: float) -> torch.Tensor:
        set_learning_rate(self._optimizer, learning_rate)
        norm = self._clip()
        if self._guard.see(norm):
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._ema is not None:
            self._ema.update()
        return norm

    @torch.no_grad()
    def _clip(self) -> torch.Tensor:
        """The norm over all ranks' shards. Done by hand, for shards on the host have no collectives beside NCCL."""
        shards = [p.grad.to_local() for p in self._parameters.values() if p.grad is not None]
        square = torch.nn.utils.get_total_norm(shards).square().to(self._device)
        dist.all_reduce(square, group=self._mesh.get_group())
        norm = square.sqrt()
        factor = torch.clamp(self._setting.max_grad_norm / (norm + 1e-6), max=1.0)
        torch._foreach_mul_(shards, factor.to(shards[0].device))
        return norm

    @torch.no_grad()
    def export(self) -> Iterator[Named]:
        for i, (name, parameter) in enumerate(self._parameters.items()):
            yield WEIGHTS, name, self._gather(parameter, parameter.to_local())
            if self._ema is not None:
                yield ema.KIND, name, self._gather(parameter, self._ema.averages[i])
            state = self._optimizer.state.get(parameter, {})
            for moment in MOMENTS:
                mine = state[moment].to_local() if moment in state else torch.zeros_like(parameter.to_local())
                yield moment, name, self._gather(parameter, mine)

    def _gather(self, parameter: DTensor, mine: torch.Tensor) -> torch.Tensor:
        shard = DTensor.from_local(
            mine.detach().to(self._device),
            self._mesh,
            parameter.placements,
            run_check=False,
            shape=parameter.shape,
            stride=parameter.stride(),
        )
        return shard.full_tensor()

    @torch.no_grad()
    def restore(self, read: Callable[[str, str], torch.Tensor], steps: int) -> None:
        for i, (name, parameter) in enumerate(self._parameters.items()):
            parameter.to_local().copy_(self._cut(parameter, read(WEIGHTS, name)))
            if self._ema is not None:
                self._ema.averages[i].copy_(self._cut(parameter, read(ema.KIND, name)))
            state: dict[str, torch.Tensor] = {"step": torch.tensor(float(steps), device=parameter.device)}
            for moment in MOMENTS:
                state[moment] = torch.zeros_like(parameter)
                state[moment].to_local().copy_(self._cut(parameter, read(moment, name)))
            self._optimizer.state[parameter] = state

    def _cut(self, parameter: DTensor, whole: torch.Tensor) -> torch.Tensor:
        """This rank's part of a tensor that every rank has."""
        placed = distribute_tensor(whole.to(self._device), self._mesh, parameter.placements, src_data_rank=None)
        return placed.to_local()

    @torch.no_grad()
    def load(self, read: Callable[[str], torch.Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.to_local().copy_(self._cut(parameter, read(name)))

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        return ema.in_force(self._ema, before=self._reshard)

    @contextlib.contextmanager
    def unsharded(self) -> Iterator[None]:
        size = sum(p.numel() * (2 if self._setting.bf16 else p.element_size()) for p in self.module.parameters())
        if not self.module_communicates or not fits_everywhere(size, self._device):
            yield
            return
        parts = self._parts()
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        self.module_communicates = False
        try:
            yield
        finally:
            self.module_communicates = True
            for part in parts:
                part.set_reshard_after_forward(part is not self.module, recurse=False)
            self._reshard()

    def _reshard(self) -> None:
        """Nothing of the last forward may outlive a change of the shards: the root keeps its weights gathered."""
        for part in self._parts():
            part.reshard()

    @torch.no_grad()
    def whole(self, *, frozen: bool) -> nn.Module:
        self._reshard()

        def plain(parameter: nn.Parameter) -> torch.Tensor:
            if parameter.requires_grad or not frozen:
                return torch.empty(0, dtype=parameter.dtype)
            gathered = self._gather(parameter, parameter.to_local())
            return gathered.cpu() if self._setting.rank == 0 else torch.empty(0)

        module = with_plain_parameters(self.module, plain)
        for part in self._parts():
            part.__class__ = type(part).__mro__[2]  # its own class, as its config will say
        return module

    def _parts(self) -> list[FSDPModule]:
        return [part for part in self.module.modules() if isinstance(part, FSDPModule)]

    def _locals(self) -> list[torch.Tensor]:
        return [parameter.to_local() for parameter in self._parameters.values()]
