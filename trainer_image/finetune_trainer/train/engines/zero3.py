"""Strategy zero3: weights are sharded too, and gathered module by module while they are used.

Weights that come sharded (see model.sharded) are brought into DeepSpeed's own flat shards one after the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from finetune_trainer.errors import BadInput
from finetune_trainer.model import sharded
from finetune_trainer.train.engines.engine import WEIGHTS, Setting
from finetune_trainer.train.engines.plain import with_empty_parameters
from finetune_trainer.train.engines.room import fits_everywhere
from finetune_trainer.train.engines.zero import Slice, ZeroEngine
from finetune_trainer.train.optimizers.recipe import Group, Recipe


class Zero3Engine(ZeroEngine):
    """See `engine.Engine`."""

    stage = 3
    even = True

    def __init__(self, setting: Setting, model: nn.Module, recipe: Recipe, groups: list[Group]) -> None:
        offload = setting.offload
        if setting.ema and offload is not None and "nvme" in (offload.optimizer, offload.parameters):
            raise BadInput(
                "spec.training.ema: weights on NVMe have no moving average",
                code="InvalidSpec",
                remedy="remove training.ema, or offload to cpu",
            )
        super().__init__(setting, model, recipe, groups)
        self.module_communicates = setting.world_size > 1

    @torch.no_grad()
    def _place(self, setting: Setting, model: nn.Module, how: dict[str, Any]) -> dict[str, torch.Tensor]:
        from deepspeed.runtime.zero.partition_parameters import Init

        for module in model.modules():  # DeepSpeed leaves the place of buffers to who shards
            module._buffers |= {n: b.to(setting.device) for n, b in module._buffers.items() if b is not None}
        exact: dict[str, torch.Tensor] = {}
        holder = nn.ParameterList()

        def place(name: str, parameter: nn.Parameter) -> nn.Parameter:
            value = sharded.whole(parameter).detach().to(setting.device)
            if setting.bf16 and parameter.requires_grad:
                exact[name] = self._slice(value).clone()
            if setting.bf16 and value.is_floating_point():
                value = value.to(torch.bfloat16)
            placed: Any = nn.Parameter(value, requires_grad=parameter.requires_grad)
            if len(holder):
                holder[0].convert_to_zero_parameters(param_list=[placed])
            else:
                holder.append(placed)
                Init(module=holder, config_dict_or_path=how)
            return placed

        sharded.replace(model, place)
        return exact

    @torch.no_grad()
    def _begin_with(self, exact: dict[str, torch.Tensor]) -> None:
        self._write(lambda _, name, start, length: exact.pop(name), (WEIGHTS,))

    def _slice(self, tensor: torch.Tensor) -> torch.Tensor:
        """What DeepSpeed gives this rank of a whole tensor."""
        length = -(-tensor.numel() // dist.get_world_size())
        first = min(tensor.numel(), length * dist.get_rank())
        return tensor.flatten()[first : first + length]

    def _flats(self) -> list[torch.Tensor]:
        return self._zero.fp32_partitioned_groups_flat

    def _slices(self, *, keep: bool) -> Iterator[Slice]:
        names = {id(parameter): name for name, parameter in self._parameters.items()}
        for group, parameters in enumerate(self._zero.fp16_groups):
            with self._in_memory(group, keep=keep):
                for parameter in parameters:
                    _, here, length = self._zero.grad_position[self._zero.get_param_id(parameter)]
                    start = length * self._setting.rank  # all slices are as long; the last may end in padding
                    real = min(length, max(0, parameter.ds_numel - start))
                    if real:
                        yield Slice(names[id(parameter)], tuple(parameter.ds_shape), start, real, group, here)

    @torch.no_grad()
    def refresh(self) -> None:
        self._zero._partition_all_parameters()
        for group in range(len(self._zero.fp16_groups)):
            with self._in_memory(group, keep=False):
                self._zero._reassign_or_swap_out_partitioned_parameters(group)
        self._gather_persistent()

    def _gather_persistent(self) -> None:
        """Small weights, which DeepSpeed keeps whole on every rank between steps, are stale after a write."""
        if self._zero.persistent_parameters:
            self._zero.persistent_parameters[0].all_gather(self._zero.persistent_parameters)

    @contextlib.contextmanager
    def _in_memory(self, group: int, *, keep: bool) -> Iterator[None]:
        """The slice of `group` and its states, if they lie on NVMe; changes are written back if they are to be kept."""
        away = self._zero._swappable_optimizer_subgroup(group)
        if away:
            self._zero._optimizer_states_and_gradient_swap_in(group)
        yield
        if away and keep:
            self._zero._optimizer_states_and_gradient_swap_out(group)
        elif away:
            self._zero._release_swap_buffers(group)

    @contextlib.contextmanager
    def unsharded(self) -> Iterator[None]:
        from deepspeed.runtime.zero.stage3 import unwrap_model_for_generation

        size = sum(p.ds_numel * p.ds_tensor.element_size() for p in self.module.parameters())
        if not self.module_communicates or not fits_everywhere(size, self._device):
            yield
            return
        offload = self._zero.parameter_offload
        with unwrap_model_for_generation(self._engine):
            offload.fwd_pre_hook.remove()  # before the first step it compares the order of modules among ranks
            self.module_communicates = False
            try:
                yield
            finally:
                self.module_communicates = True
                offload.fwd_pre_hook = self.module.register_forward_pre_hook(
                    lambda *_: offload.get_param_coordinator().reset_step()
                )

    def whole(self) -> nn.Module:
        self._zero._partition_all_parameters()
        module = with_empty_parameters(self.module)
        self._engine.destroy()
        return module
