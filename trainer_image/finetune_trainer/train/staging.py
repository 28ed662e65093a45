"""Host memory that holds a checkpoint's tensors while training goes on and another process writes them.

It lies in anonymous files, which that process inherits; they are kept from one checkpoint to the next, for new memory costs
more time than copying.
"""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from typing import Any

import torch

_CHUNK_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies: from `offset` in the chunk of that number."""

    kind: str
    name: str
    shape: tuple[int, ...]
    chunk: int
    offset: int


class Staging:
    """Append tensors after `clear`; `places` and `descriptors` tell another process where they are."""

    def __init__(self) -> None:
        self.places: list[Place] = []
        self.descriptors: list[int] = []
        self._chunks: list[mmap.mmap] = []
        self._chunk = 0
        self._used = 0

    @property
    def capacity(self) -> int:
        """Bytes that were taken from the system so far, at most."""
        return sum(len(chunk) for chunk in self._chunks)

    def clear(self) -> None:
        self.places = []
        self._chunk = self._used = 0

    def add(self, kind: str, name: str, tensor: torch.Tensor) -> None:
        """Copy a tensor of any device, as fp32. Raises OSError when the system gives no more memory."""
        size = 4 * tensor.numel()
        while self._chunk < len(self._chunks) and self._used + size > len(self._chunks[self._chunk]):
            self._chunk, self._used = self._chunk + 1, 0
        if self._chunk == len(self._chunks):
            self._grow(max(size, _CHUNK_BYTES))
        if size:
            target = torch.frombuffer(
                self._chunks[self._chunk], dtype=torch.float32, count=tensor.numel(), offset=self._used
            )
            target.view(tensor.shape).copy_(tensor.detach())
        self.places.append(Place(kind, name, tuple(tensor.shape), self._chunk, self._used))
        self._used += size

    def wire(self) -> list[dict[str, Any]]:
        return [asdict(place) for place in self.places]

    def _grow(self, size: int) -> None:
        if sys.platform == "linux":
            descriptor = os.memfd_create("checkpoint")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, size)
        self.descriptors.append(descriptor)
        self._chunks.append(mmap.mmap(descriptor, size))
