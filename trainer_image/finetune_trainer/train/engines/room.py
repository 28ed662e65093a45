"""Whether something more fits into memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

_SHARE = 0.8
"""Of what is free: the rest is for what comes along with it."""

_MMAP_THRESHOLD = -3
"""M_MMAP_THRESHOLD of glibc's mallopt."""


@contextlib.contextmanager
def returning_host_memory() -> Iterator[None]:
    """Inside, tensors that are freed go back to the system at once. While a model is loaded and cut, each is followed by others of
    other sizes, and glibc would keep the gaps: with layers of 100 MB, 40% of the model and more. Steps are faster with what it keeps."""
    threshold = getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)
    threshold(_MMAP_THRESHOLD, 1 << 20)
    try:
        yield
    finally:
        threshold(_MMAP_THRESHOLD, 32 << 20)  # the largest that glibc comes to by itself


def fits_everywhere(size: int, device: torch.device) -> bool:
    """Collective: whether every rank can take `size` bytes more where its model computes."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # else what PyTorch keeps for later counts as used
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = host_bytes() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    enough = torch.tensor(int(size <= _SHARE * free), device=device)
    if dist.is_initialized():
        dist.all_reduce(enough, op=dist.ReduceOp.MIN)
    return bool(enough.item())


def fits_on_host(size: int) -> bool:
    return size <= _SHARE * host_bytes()


def host_bytes() -> int:
    """Memory of this machine or container that nobody uses."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    try:
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            used = int((group / "memory.current").read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            free = min(free, int(limit) - used + int(stat.get("inactive_file", 0)))
    except (OSError, ValueError):  # no cgroup of version 2
        pass
    return max(0, free)
