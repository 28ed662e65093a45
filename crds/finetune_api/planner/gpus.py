"""What GPUs are: memory, arithmetic, bandwidth. By the names that `compute.gpuType` takes.

From the makers' data sheets. FLOP/s are dense, of the 16-bit type that trains there (bfloat16; float16 tensor cores where
there is no bfloat16, on which bf16 runs far slower: `bf16` is False). `memory` is what a process can have: total memory
as the driver shows it, which is some percent below the number in the name.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

GIB = 1024**3


@dataclass(frozen=True, slots=True)
class Gpu:
    """`memory` in bytes, `flops` in FLOP/s, `bandwidth` of its memory and `link` to its neighbours in one direction, in bytes/s."""

    name: str
    memory: int
    flops: float
    bandwidth: float
    link: float
    bf16: bool = True


def _gpu(name: str, gib: float, tflops: float, gbs: float, link: float, *, bf16: bool = True) -> Gpu:
    return Gpu(name, int(gib * GIB), tflops * 1e12, gbs * 1e9, link * 1e9, bf16)


GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        _gpu("b300", 268, 2250, 8000, 900),  # NVIDIA Blackwell Ultra data sheet: 288 GB HBM3e, NVLink 5
        _gpu("b200", 178, 2250, 8000, 900),  # NVIDIA DGX B200 data sheet: 180 GB a GPU, 18 PFLOP/s dense bf16 of 8
        _gpu("h200", 139.8, 989, 4800, 450),  # NVIDIA H200 data sheet (SXM): 141 GB
        _gpu("h100", 79.1, 989, 3350, 450),  # NVIDIA H100 data sheet (SXM5): 80 GB
        _gpu("h100-pcie", 79.1, 756, 2000, 64),  # NVIDIA H100 data sheet (PCIe)
        _gpu("h100-nvl", 93.1, 835, 3900, 300),  # NVIDIA H100 data sheet (NVL): 94 GB
        _gpu("gh200", 94.5, 989, 4000, 450),  # NVIDIA GH200 data sheet: 96 GB HBM3
        _gpu("a100-80gb", 79.1, 312, 2039, 300),  # NVIDIA A100 data sheet (SXM)
        _gpu("a100-40gb", 39.4, 312, 1555, 300),  # NVIDIA A100 data sheet
        _gpu("a6000", 47.5, 155, 768, 56),  # NVIDIA RTX A6000 data sheet: 309.7 with sparsity
        _gpu("rtx-6000-ada", 47.5, 364, 960, 32),  # NVIDIA RTX 6000 Ada data sheet: 1457 FP8 with sparsity
        _gpu("rtx-pro-6000", 94.9, 504, 1792, 64),  # NVIDIA RTX PRO 6000 Blackwell data sheet: 96 GB
        _gpu("l40s", 44.5, 362, 864, 32),  # NVIDIA L40S data sheet: 48 GB with ECC
        _gpu("l40", 44.5, 181, 864, 32),  # NVIDIA L40 data sheet
        _gpu("l4", 22.0, 121, 300, 32),  # NVIDIA L4 data sheet: 24 GB with ECC, 242 with sparsity
        _gpu("a40", 44.5, 150, 696, 56),  # NVIDIA A40 data sheet: 48 GB with ECC
        _gpu("a30", 23.6, 165, 933, 100),  # NVIDIA A30 data sheet
        _gpu("a10", 22.0, 125, 600, 32),  # NVIDIA A10 data sheet: 24 GB with ECC
        _gpu("a10g", 22.0, 70, 600, 32),  # AWS g5: half of an A10's tensor rate
        _gpu("t4", 14.6, 65, 320, 16, bf16=False),  # NVIDIA T4 data sheet: 16 GB with ECC, FP16
        _gpu("v100", 31.7, 125, 900, 150, bf16=False),  # NVIDIA V100 data sheet (SXM2, 32 GB), FP16
        _gpu("v100-16gb", 15.8, 125, 900, 150, bf16=False),  # NVIDIA V100 data sheet (SXM2, 16 GB), FP16
        _gpu("rtx-3090", 23.6, 71, 936, 16),  # NVIDIA GA102 white paper, FP32 accumulation
        _gpu("rtx-4090", 23.5, 165, 1008, 32),  # NVIDIA Ada white paper, FP32 accumulation
        _gpu("rtx-5090", 31.4, 209, 1792, 64),  # NVIDIA Blackwell RTX white paper, FP32 accumulation
        _gpu("mi250x", 63.9, 191, 1638, 100),  # AMD MI250X data sheet: one of its two dies, which is one device
        _gpu("mi300x", 191.5, 1307, 5300, 448),  # AMD MI300X data sheet: 192 GB
        _gpu("mi325x", 255.5, 1307, 6000, 448),  # AMD MI325X data sheet: 256 GB
        _gpu("mi355x", 287.5, 2500, 8000, 538),  # AMD MI355X data sheet: 288 GB
    )
}
"""Every GPU that is known by name."""

ALIASES = {
    "h100-sxm": "h100", "h100-80gb": "h100", "h200-sxm": "h200", "a100": "a100-80gb", "a100-sxm": "a100-80gb",
    "v100-32gb": "v100", "rtx-a6000": "a6000", "4090": "rtx-4090", "3090": "rtx-3090", "5090": "rtx-5090",
}  # fmt: skip


def gpu_of(name: str | None) -> Gpu | None:
    """The GPU of a `compute.gpuType`; None for a name that is not known."""
    if name is None:
        return None
    return GPUS.get(ALIASES.get(name, name))


def gib(size: float) -> str:
    """Bytes as people read them: 71 GiB, 3.4 GiB, 210 MiB."""
    if size >= 100 * 2**20:
        return f"{size / GIB:.0f} GiB" if size >= 10 * GIB else f"{size / GIB:.1f} GiB"
    return f"{size / 2**20:.0f} MiB"


def bytes_of(quantity: str) -> int:
    """`compute.gpuMemory`: 80Gi -> 85899345920."""
    match = re.fullmatch(r"([1-9][0-9]*)(Mi|Gi)", quantity)
    if match is None:
        raise ValueError(f"{quantity!r} is no amount of memory: write 80Gi")
    return int(match[1]) * {"Mi": 1024**2, "Gi": GIB}[match[2]]


_UNITS = {
    "": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50, "Ei": 2.0**60,
}  # fmt: skip


def size_of(quantity: int | str) -> int:
    """Bytes of a Kubernetes quantity: 1.5Gi, 1e9, 512M. Raises ValueError for what is none."""
    match = re.fullmatch(r"\+?([0-9.]+(?:[eE][+-]?[0-9]+)?)([a-zA-Z]*)", str(quantity))
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"{quantity!r} is no amount of memory: write 80Gi")
    return math.ceil(float(match[1]) * _UNITS[match[2]])
