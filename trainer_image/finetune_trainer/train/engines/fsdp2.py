"""Strategy fsdp2: PyTorch's own full sharding, by block. Weights, gradients and optimizer states are DTensors, one for each parameter.

Master weights stay in the precision they were loaded in (fp32 for all that is trained); in bf16 runs they are rounded
when they are gathered, and gradients are reduced in fp32. Weights that come sharded (see model.sharded) are never whole.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from finetune_trainer.model import sharded
from finetune_trainer.tasks.base import Batch
from finetune_trainer.train import ema
from finetune_trainer.train.engines.engine import WEIGHTS, Fragment, Loss, ReadState, ReadWeights, Setting
from finetune_trainer.train.engines.plain import with_empty_parameters
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
        self._take(model, parts)
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
    def _take(self, model: nn.Module, parts: dict[str, torch.Tensor]) -> None:
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
                # Then fully_shard pads the new parts, and not in the first forward.
                part._apply(torch.Tensor.detach, recurse=False)

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
    def export(self) -> Iterator[Fragment]:
        for i, (name, parameter) in enumerate(self._parameters.items()):
            shape, start, mine = tuple(parameter.shape), self._start(parameter), parameter.to_local()
            yield Fragment(WEIGHTS, name, shape, start, mine.flatten())
            if self._ema is not None:
                yield Fragment(ema.KIND, name, shape, start, self._ema.averages[i].flatten())
            state = self._optimizer.state.get(parameter, {})
            for moment in MOMENTS:
                value = state[moment].to_local() if moment in state else torch.zeros_like(mine)
                yield Fragment(moment, name, shape, start, value.flatten())

    def _start(self, parameter: DTensor) -> int:
        """The first element of this rank's shard: rows are cut into equal chunks, of which the last ones may be shorter or empty."""
        rows = parameter.shape[0]
        first = min(rows, -(-rows // self._setting.world_size) * self._setting.rank)
        return first * (parameter.numel() // rows if rows else 0)

    @torch.no_grad()
    def restore(self, read: ReadState, steps: int) -> None:
        for i, (name, parameter) in enumerate(self._parameters.items()):
            self._fill(parameter, parameter.to_local(), functools.partial(read, WEIGHTS, name))
            if self._ema is not None:
                self._fill(parameter, self._ema.averages[i], functools.partial(read, ema.KIND, name))
            state: dict[str, torch.Tensor] = {"step": torch.tensor(float(steps), device=parameter.device)}
            for moment in MOMENTS:
                kept = torch.zeros_like(parameter)
                self._fill(parameter, kept.to_local(), functools.partial(read, moment, name))
                state[moment] = kept
            self._optimizer.state[parameter] = state

    def _fill(self, parameter: DTensor, mine: torch.Tensor, read: Callable[[int, int], torch.Tensor]) -> None:
        mine.copy_(read(self._start(parameter), mine.numel()).view(mine.shape))

    @torch.no_grad()
    def load(self, read: ReadWeights) -> None:
        for name, parameter in self._parameters.items():
            self._fill(parameter, parameter.to_local(), functools.partial(read, name))

    def refresh(self) -> None:
        self._reshard()

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

    def whole(self) -> nn.Module:
        self._reshard()
        module = with_empty_parameters(self.module)
        for part in self._parts():
            part.__class__ = type(part).__mro__[2]  # its own class, as its config will say
        return module

    def _parts(self) -> list[FSDPModule]:
        return [part for part in self.module.modules() if isinstance(part, FSDPModule)]

    def _locals(self) -> list[torch.Tensor]:
        return [parameter.to_local() for parameter in self._parameters.values()]
