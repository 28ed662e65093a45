"""A model's files, read a tensor at a time.

transformers reads, converts and renames; each weight that is ready goes to its place before the next one is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

Place = Callable[[torch.Tensor], torch.Tensor]
"""From a whole tensor on the host to what this rank keeps of it, where it keeps it."""

_ONE_AT_A_TIME = "HF_DEACTIVATE_ASYNC_LOAD"
"""transformers' variable. Otherwise its threads read on ahead of what was placed, up to the whole model."""
_SAMPLE_BYTES = 256


def files(folder: Path, config: Any = None) -> list[Path]:
    """The files that transformers reads weights from; others may lie beside them in another layout. Those of a folder without any are none."""
    name = getattr(config, "transformers_weights", None) or SAFE_WEIGHTS_NAME
    if not (folder / name).is_file():
        name = SAFE_WEIGHTS_INDEX_NAME
    path = folder / name
    if not path.is_file():
        return []
    if not name.endswith(".json"):
        return [path]
    return [folder / part for part in sorted(set(json.loads(path.read_bytes())["weight_map"].values()))]


@contextlib.contextmanager
def opened(paths: list[Path]) -> Iterator[dict[str, Any]]:
    """Slices of all tensors, by name. They are read, not mapped: what was read does not stay in this process."""
    with contextlib.ExitStack() as stack:
        slices: dict[str, Any] = {}
        for path in paths:
            file = stack.enter_context(safe_open(path, framework="pt", backend="pread"))
            slices |= {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
        yield slices


@contextlib.contextmanager
def placing(place: Place) -> Iterator[None]:
    """Inside, every weight that transformers has loaded is replaced by `place` of it as soon as a module gets it."""

    def on_registration(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        loaded = getattr(parameter, "_is_hf_initialized", False)
        if parameter is None or not loaded or parameter.is_meta or hasattr(parameter, "_finetune_placed"):
            return None
        placed: Any = nn.Parameter(place(parameter.detach()), requires_grad=parameter.requires_grad)
        placed._is_hf_initialized = placed._finetune_placed = True
        return placed

    before = os.environ.get(_ONE_AT_A_TIME)
    os.environ[_ONE_AT_A_TIME] = "1"
    hook = register_module_parameter_registration_hook(on_registration)
    try:
        yield
    finally:
        hook.remove()
        if before is None:
            del os.environ[_ONE_AT_A_TIME]
        else:
            os.environ[_ONE_AT_A_TIME] = before


def digest(model: nn.Module, folders: Iterable[Path]) -> str:
    """sha256 over a sample of every tensor in the folders' files, and of every parameter that `model` trains and this rank holds whole.

    It is cheap for any size, and no two different trainings agree on it. Frozen weights count too.
    """
    found = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.glob("*.safetensors")):
            _add_file(found, path)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not isinstance(parameter, DTensor):
            flat = parameter.detach().flatten()
            sample = flat[:: max(1, flat.numel() // 64)].float().cpu()
            found.update(name.encode())
            found.update(sample.numpy().tobytes())
    return found.hexdigest()


def _add_file(found: Any, path: Path) -> None:
    """Names, shapes, and bytes from the middle of each tensor."""
    with path.open("rb", buffering=0) as file:
        size = int.from_bytes(file.read(8), "little")
        header = file.read(size)
        found.update(header)
        for entry in json.loads(header).values():
            begin, end = entry.get("data_offsets", (0, 0))  # metadata has none
            file.seek(8 + size + max(begin, (begin + end - _SAMPLE_BYTES) // 2))
            found.update(file.read(min(_SAMPLE_BYTES, end - begin)))
