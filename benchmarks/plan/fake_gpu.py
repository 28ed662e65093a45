"""A GPU that is not there: PyTorch computes shapes, dtypes and lifetimes of tensors on it, and no values.

`fake_gpu()` is for code of the trainer as it is, with autocast, variable-length attention, forward, backward and optimizer.
What a driver would be asked for is answered here: the compute capability, whether there is bf16, and the order in which
the backward's nodes run, since the engine in C++ wants the driver's streams.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import sys
import weakref
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import _CheckpointFrame

_ROUND = 512
"""Bytes that CUDA's caching allocator rounds a block up to."""
_HOPPER = (92600, 9)
"""cuDNN's version and the major compute capability of an H100 or H200."""


class Live(TorchDispatchMode):
    """Bytes of all storages on the fake GPU: `now`, and at most since `reset`. `at` is the operator that made the peak."""

    def __init__(self, device: str = "cuda") -> None:
        super().__init__()
        self._device = device
        self.now = self.peak = 0
        self.at = ""
        self._known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._by = ""

    def reset(self) -> None:
        self.peak = self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._by = str(func)
        out = func(*args, **(kwargs or {}))
        pytree.tree_map_(self._count, out)
        return out

    def _count(self, value: Any) -> None:
        if not isinstance(value, torch.Tensor) or value.device.type != self._device:
            return
        storage = value.untyped_storage()
        if storage in self._known:
            return
        size = -(-storage.nbytes() // _ROUND) * _ROUND
        self._known[storage] = size
        self.now += size
        weakref.finalize(storage, self._free, size)
        if self.now > self.peak:
            self.peak, self.at = self.now, self._by

    def _free(self, size: int) -> None:
        self.now -= size


@contextlib.contextmanager
def fake_gpu(counted: str = "cuda") -> Iterator[Live]:
    """Inside, `cuda` is a device without memory or kernels, and so is the CPU; what lives on the one that is `counted`."""
    with (
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
        mock.patch("torch.cuda.is_bf16_supported", return_value=True),
        mock.patch("torch.nn.attention.varlen._cudnn_version_and_major_capability", return_value=_HOPPER),
        mock.patch("torch.cuda.get_device_capability", return_value=(_HOPPER[1], 0)),
        mock.patch("torch.Tensor.pin_memory", lambda self, *_: self),
        mock.patch("torch.nn.Module._apply", _apply),
        mock.patch("torch.autograd._engine_run_backward", _run_backward),
        mock.patch("torch._C._current_graph_task_id", _current_task),
        FakeTensorMode(allow_non_fake_inputs=True),
        Live(counted) as live,
    ):
        yield live


def _apply(module: nn.Module, change: Any, recurse: bool = True) -> nn.Module:
    """`Module._apply` by new parameters: torch would swap the contents of old ones, which those of fake tensors do not allow."""
    for child in module.children() if recurse else ():
        child._apply(change)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            with torch.no_grad():
                changed = change(parameter)
            if changed is not parameter:
                module._parameters[name] = nn.Parameter(changed, parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = change(buffer)
    return module


def _current_task() -> int:
    return _task


_task = -1
_tasks = itertools.count()


def _run_backward(
    roots: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor | None],
    *_: Any,
    **__: Any,
) -> tuple[()]:
    """Do what the engine in C++ does for `loss.backward()`: later nodes first, saved tensors freed as soon as a node ran."""
    global _task
    _task = next(_tasks)
    try:
        with torch.no_grad():
            _traverse(
                [
                    (one.grad_fn, 0, given)
                    for one, given in zip(roots, gradients, strict=True)
                    if one.grad_fn is not None
                ]
            )
    finally:
        _task = -1
    return ()


def _traverse(begin: list[tuple[Any, int, Any]]) -> None:
    waits = _dependencies([node for node, _, _ in begin])
    inputs: dict[Any, dict[int, torch.Tensor]] = defaultdict(dict)
    ready: list[tuple[int, int, Any]] = []
    order = itertools.count()

    def push(node: Any) -> None:
        heapq.heappush(ready, (-node._sequence_nr(), next(order), node))

    for node, number, gradient in begin:
        inputs[node][number] = gradient
        if not waits[node]:
            push(node)
    while ready:
        _, _, node = heapq.heappop(ready)
        outputs = _run(node, inputs.pop(node, {}))
        for number, (child, place) in enumerate(node.next_functions):
            if child is None:
                continue
            gradient = outputs[number] if number < len(outputs) else None
            outputs[number : number + 1] = [None]
            if gradient is not None:
                _add(inputs[child], place, _as_expected(gradient, child, place))
            del gradient
            waits[child] -= 1
            if not waits[child]:
                push(child)


def _dependencies(roots: list[Any]) -> dict[Any, int]:
    """For each node how many edges lead to it."""
    waits: dict[Any, int] = dict.fromkeys(roots, 0)
    waiting = list(waits)
    while waiting:
        for child, _ in waiting.pop().next_functions:
            if child is None:
                continue
            if child not in waits:
                waits[child] = 0
                waiting.append(child)
            waits[child] += 1
    return waits


def _run(node: Any, given: dict[int, torch.Tensor]) -> list[torch.Tensor | None]:
    """The gradients at what `node` was computed from."""
    if not given:
        return []
    variable = getattr(node, "variable", None)
    if variable is not None:
        if variable.grad is None:
            variable.grad = given[0].detach()
        else:
            variable.grad += given[0]
        return []
    count = max(given) + 1 if not hasattr(node, "_input_metadata") else len(node._input_metadata)
    arguments = [given.pop(number, None) for number in range(count)]
    run = node.apply if hasattr(node, "apply") else node
    outputs = run(*arguments)
    arguments.clear()
    _release(node)
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


_saved: dict[type, tuple[str, ...]] = {}


def _release(node: Any) -> None:
    """Let go of the tensors that a node kept for its backward."""
    kind = type(node)
    if kind not in _saved:
        _saved[kind] = tuple(name for name in dir(node) if name.startswith("_raw_saved_"))
    for name in _saved[kind]:
        try:
            kept = getattr(node, name)
        except (RuntimeError, AttributeError):  # there is none this time
            continue
        for one in kept if isinstance(kept, tuple | list) else (kept,):
            if one is None:
                continue
            if one.unpack_hook is not None:
                _release_recomputed(one)
                continue
            with contextlib.suppress(RuntimeError):  # numbers take no hooks
                one.register_hooks(_nothing, _nothing)


def _release_recomputed(saved: Any) -> None:
    """The same for a tensor that activation checkpointing makes again: the block's inputs go with the last one of it."""
    cells = [cell.cell_contents for cell in saved.unpack_hook.__closure__ or ()]
    for frame in (cell for cell in cells if isinstance(cell, _CheckpointFrame)):
        saved.data.handles.clear()
        frame.released = getattr(frame, "released", 0) + 1  # type: ignore[attr-defined]
        if frame.released == len(frame.weak_holders):  # type: ignore[attr-defined]
            frame.saved_args = []


def _nothing(_: Any) -> None:
    return None


def _as_expected(gradient: torch.Tensor, node: Any, place: int) -> torch.Tensor:
    """In the shape and precision of what it is the gradient of."""
    wanted = node._input_metadata[place]
    if gradient.shape != wanted.shape:
        gradient = gradient.sum_to_size(wanted.shape)
    return gradient if gradient.dtype == wanted.dtype else gradient.to(wanted.dtype)


def _add(there: dict[int, torch.Tensor], place: int, gradient: torch.Tensor) -> None:
    """In place where nothing else holds what is there."""
    if place not in there:
        there[place] = gradient
    elif sys.getrefcount(there[place]) == 2 and _is_alone(there[place]):
        there[place].add_(gradient)
    else:
        there[place] = there[place] + gradient


def _is_alone(tensor: torch.Tensor) -> bool:
    """Whether no other tensor has its storage, of which Python holds one reference."""
    return torch._C._storage_Use_Count(tensor.untyped_storage()._cdata) == 2
