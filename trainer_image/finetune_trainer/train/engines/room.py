"""Whether something more fits into memory."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist

_SHARE = 0.8
"""Of what is free: the rest is for what comes along with it."""


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
