"""Host memory that holds what a rank owns of a checkpoint while training continues and another process writes them.

It is in anonymous files, which that process inherits; they are kept from one checkpoint to the next, for new memory costs
more time than copying.
"""

from __future__ import annotations

import mmap
import os
import sys
import tempfile

import torch

from finetune_trainer.train.engines.engine import Fragment

_CHUNK_BYTES = 1 << 30


Place = tuple[str, str, tuple[int, ...], int, int, int, int]
"""kind, name, shape of the tensor, first element of the fragment in it, elements, chunk, first byte in the chunk"""


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

    def add(self, one: Fragment) -> None:
        """Copy a fragment on any device, as fp32. Raises OSError when the system gives no more memory."""
        count = one.values.numel()
        size = 4 * count
        while self._chunk < len(self._chunks) and self._used + size > len(self._chunks[self._chunk]):
            self._chunk, self._used = self._chunk + 1, 0
        if self._chunk == len(self._chunks):
            self._grow(max(size, _CHUNK_BYTES))
        if size:
            chunk = self._chunks[self._chunk]
            torch.frombuffer(chunk, dtype=torch.float32, count=count, offset=self._used).copy_(one.values.detach())
        self.places.append((one.kind, one.name, one.shape, one.start, count, self._chunk, self._used))
        self._used += size

    def _grow(self, size: int) -> None:
        if sys.platform == "linux":
            descriptor = os.memfd_create("checkpoint")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, size)
        self.descriptors.append(descriptor)
        self._chunks.append(mmap.mmap(descriptor, size))
