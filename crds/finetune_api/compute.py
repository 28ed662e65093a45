"""`spec.compute`: where training runs, and how the work is shared."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from finetune_api.base import ApiModel
from finetune_api.rules import Rule, Ruled

Strategy = Literal["ddp", "zero1", "zero2", "zero3", "fsdp2"]
OffloadTarget = Literal["none", "cpu", "nvme"]

MICRO_BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
"""Of a micro-batch, by device, where memory does not ask for fewer: more of them make no device faster."""


class OffloadSpec(ApiModel, Ruled):
    """What lies outside GPU memory between uses. Slower, but larger models fit. With fsdp2 either of the two moves both."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.nvmePath) == ((has(self.optimizer) && self.optimizer == 'nvme') || (has(self.parameters) && self.parameters == 'nvme'))",
            "compute.offload: nvmePath and nvme go together: give both, or neither",
            lambda self: (self.nvme_path is not None) == ("nvme" in (self.optimizer, self.parameters)),
        ),
    )

    optimizer: OffloadTarget | None = Field(default=None, description="Optimizer states. Absent: none.")
    parameters: OffloadTarget | None = Field(default=None, description="Weights. Absent: none.")
    nvme_path: Annotated[str, Field(pattern=r"^/.+", max_length=255)] | None = Field(
        default=None, description="Folder on a fast local disk, mounted by pods.train.volumes."
    )


class ComputeSpec(ApiModel, Ruled):
    """Where training runs: `nodes` pods, each with `processesPerNode` processes."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.device) || self.device != 'cpu' || !has(self.gpusPerNode) || self.gpusPerNode == 0",
            "compute.gpusPerNode must be 0 or absent when compute.device is cpu",
            lambda self: self.device != "cpu" or not self.gpus_per_node,
        ),
        Rule(
            "!has(self.device) || self.device != 'cuda' || !has(self.gpusPerNode) || self.gpusPerNode > 0",
            "compute.gpusPerNode must be at least 1 when compute.device is cuda; for training on CPUs set device: cpu",
            lambda self: self.device != "cuda" or self.gpus_per_node != 0,
        ),
        Rule(
            "!has(self.processesPerNode) || (has(self.device) && self.device == 'cpu') || (has(self.gpusPerNode) ? self.gpusPerNode == 0 || self.processesPerNode <= self.gpusPerNode : self.processesPerNode == 1)",
            "compute.processesPerNode cannot be more than compute.gpusPerNode: each process needs a GPU of its own",
            lambda self: (
                not self.processes_per_node
                or self.device == "cpu"
                or self.gpus_per_node == 0
                or self.processes_per_node <= (self.gpus_per_node or 1)
            ),
        ),
    )

    nodes: int = Field(default=1, ge=1, le=1024, description="Training pods.")
    gpus_per_node: Annotated[int, Field(ge=0, le=64)] | None = Field(
        default=None, description="GPUs of each training pod. Absent: 1 on cuda, 0 on cpu."
    )
    gpu_resource: str = Field(
        default="nvidia.com/gpu",
        max_length=128,
        pattern=r"^[a-z0-9.-]+/[A-Za-z0-9_.-]+$",
        description="Resource name of a GPU.",
    )
    device: Literal["cuda", "cpu"] | None = Field(
        default=None, description="Absent: cpu if gpusPerNode is 0, else cuda."
    )
    processes_per_node: Annotated[int, Field(ge=1, le=64)] | None = Field(
        default=None, description="Absent: one a GPU, or one on cpu."
    )
    gpu_type: Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")] | None = Field(
        default=None,
        description="What the GPUs are, for memory, time and price: h100, h200, a100-80gb, l40s ... (`ftj plan --list-gpus`). Absent: the platform's.",
    )
    gpu_memory: Annotated[str, Field(max_length=16, pattern=r"^[1-9][0-9]*(Mi|Gi)$")] | None = Field(
        default=None, description="Memory of one GPU. Absent: that of gpuType."
    )
    shared_memory: Annotated[str, Field(max_length=16, pattern=r"^[1-9][0-9]*(Mi|Gi)$")] | None = Field(
        default=None,
        description="Size of /dev/shm in training pods; what is used of it counts as memory of the pod. Absent: not limited on cuda, the container runtime's 64 MiB on cpu.",
    )
    strategy: Strategy | None = Field(
        default=None,
        description="ddp keeps everything on each process; DeepSpeed's zero1 shards optimizer states, zero2 gradients too, zero3 weights too; fsdp2 is PyTorch's own full sharding. Absent: the fastest that fits; zero2 for several processes where the GPU is not known.",
    )
    offload: OffloadSpec | None = None
    micro_batch_tokens: Annotated[int, Field(ge=1, le=1_048_576)] | None = Field(
        default=None,
        description="Most tokens of a micro-batch, padding counted; a longer row goes alone. Absent: 2048 on a CPU, on a GPU what fits, at most 16384.",
    )
