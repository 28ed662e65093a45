"""Weights of which each rank holds a part: dimension 0 is cut as torch.chunk cuts it, which is how fully_shard does it too.

A model is loaded and adapted in this form, as parameters that are DTensors; engines then bring the parts into their own.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard


def cut(tensor: torch.Tensor, mesh: DeviceMesh) -> torch.Tensor:
    """This rank's part of a tensor that it has whole, on the mesh's kind of device; a tensor of no dimension stays whole."""
    if tensor.dim() == 0:
        return tensor.to(mesh.device_type)
    rows = math.ceil(len(tensor) / mesh.size())
    first = min(len(tensor), rows * mesh.get_local_rank())
    mine = tensor[first : first + rows].to(mesh.device_type, copy=True, memory_format=torch.contiguous_format)
    strides = torch.empty(tensor.shape, device="meta").stride()
    return DTensor.from_local(mine, mesh, [Shard(0)], run_check=False, shape=tensor.shape, stride=strides)


@torch.no_grad()
def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Collective: the tensor that the ranks hold parts of, where collectives run; a plain tensor is given back as it is."""
    if not isinstance(tensor, DTensor):
        return tensor
    mesh = tensor.device_mesh
    ranks, group = mesh.size(), mesh.get_group()
    device = torch.device("cuda" if dist.get_backend() == "nccl" else mesh.device_type)
    mine = tensor.to_local().detach().to(device)
    if ranks == 1:
        return mine
    rows = math.ceil(len(tensor) / ranks)
    padded = mine
    if len(mine) < rows:
        padded = mine.new_zeros((rows, *tensor.shape[1:]))
        padded[: len(mine)] = mine
    gathered = mine.new_empty((rows * ranks, *tensor.shape[1:]))
    dist.all_gather_into_tensor(gathered, padded, group=group)
    return gathered[: len(tensor)]


def replace(model: nn.Module, make: Callable[[str, nn.Parameter], nn.Parameter]) -> None:
    """Put `make(name, parameter)` in the place of every parameter, one after the other. Tied ones stay tied."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    made: dict[int, nn.Parameter] = {}
    for owner in model.modules():
        for key, parameter in list(owner._parameters.items()):
            if parameter is not None:
                if id(parameter) not in made:
                    made[id(parameter)] = make(names[id(parameter)], parameter)
                owner._parameters[key] = made[id(parameter)]


@contextlib.contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Collective: inside, the module's own parameters are whole and plain. Changes are lost."""
    parts = dict(module._parameters)
    module._parameters |= {
        name: nn.Parameter(whole(part), requires_grad=False)
        for name, part in parts.items()
        if isinstance(part, DTensor)
    }
    try:
        yield
    finally:
        module._parameters |= parts


def without_parts(model: nn.Module) -> dict[str, torch.Tensor]:
    """Take the parts out of the model, whose parameters keep shape and dtype alone: this rank's part of each, by name."""
    parts: dict[str, torch.Tensor] = {}

    def take(name: str, parameter: nn.Parameter) -> nn.Parameter:
        if not isinstance(parameter, DTensor):
            return parameter
        parts[name] = parameter.to_local().detach()
        empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
        return nn.Parameter(empty, requires_grad=parameter.requires_grad)

    replace(model, take)
    return parts
