"""Host memory of a training pod, by part."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.compute import OffloadSpec
from finetune_api.planner import parameters
from finetune_api.planner.facts import ModelShape, PlanFacts
from finetune_api.planner.memory import STAGED_BYTES, Parts, checkpoint_of, held_of, memory_of
from finetune_api.planner.share import device_of, per_node, processes
from finetune_api.spec import FineTuneJobSpec

_PROCESS = {"cpu": 576 * 2**20, "cuda": 3 * 2**30}
"""Python, PyTorch, transformers, peft and DeepSpeed with a tiny model: 570 MiB measured. What CUDA's runtime adds is an estimate."""
_LAUNCHER = 128 * 2**20
_SHARED = 256 * 2**20
"""Of /dev/shm for each process of several on one node, by NCCL. It counts as memory of the pod."""
_PINNED = 1.5
"""PyTorch rounds pinned blocks up to a power of two: at most twice what is in them."""
_SWAP_ELEMENTS = 1_000_000_000
"""DeepSpeed's sub_group_size: how much of an optimizer on NVMe is in memory at once."""


@dataclass(frozen=True, slots=True)
class HostMemory(Parts):
    """Bytes of one pod."""

    processes: int = 0
    training: int = 0
    loading: int = 0
    offload: int = 0
    checkpoint: int = 0
    shared: int = 0


def host_memory_of(spec: FineTuneJobSpec, facts: PlanFacts) -> HostMemory:
    """Of a job whose strategy and checkpointing are decided.

    Assumes that weights go to their device tensor by tensor: a process holds the largest tensor as it is read and as it is kept,
    and on a CPU, where the host is the device, its weights (under zero3 and fsdp2 its shard) as a part of `training`. That a
    checkpoint on its way holds the process's own fragments of weights and states. That offloaded states and weights are pinned, each
    process's own share: fp32 master, gradient and two moments; fsdp2 offloads all or nothing. Rows are mapped from files.
    """
    each, device, ranks = per_node(spec), device_of(spec), processes(spec)
    trained = parameters.count(spec, facts.model, labels=facts.data.labels).trainable
    size = checkpoint_of(spec, trained)
    cuda = device == "cuda"
    return HostMemory(
        processes=_LAUNCHER + each * _PROCESS[device],
        training=0 if cuda else each * memory_of(spec, facts).total,
        loading=each * _loading(spec, facts),
        offload=each * int(_PINNED * _offload(spec, facts, trained) / ranks) if cuda else 0,
        checkpoint=each * (size // ranks) if cuda and size > STAGED_BYTES else 0,
        shared=each * _SHARED if cuda and each > 1 else 0,
    )


def _loading(spec: FineTuneJobSpec, facts: PlanFacts) -> int:
    """Of one process: the largest tensor twice. Experts of a layer become one."""
    model = facts.model
    stored = max(1, -(-model.weight_bytes // model.parameters)) if model.weight_bytes else 2
    return _largest(model) * (stored + held_of(spec))


def _largest(model: ModelShape) -> int:
    experts = 2 * model.experts * model.expert_intermediate_size * model.hidden_size
    return max(parameters.table(model), model.intermediate_size * model.hidden_size, experts)


def _offload(spec: FineTuneJobSpec, facts: PlanFacts, trained: int) -> int:
    """Over all processes."""
    offload, ranks = spec.compute.offload or OffloadSpec(), processes(spec)
    frozen = facts.model.parameters - min(trained, facts.model.parameters)
    if spec.compute.strategy == "fsdp2":
        whole = "cpu" in (offload.optimizer, offload.parameters)
        return 16 * trained + held_of(spec) * frozen if whole else 0
    total = 0
    if offload.optimizer == "cpu":
        total += 16 * trained
    elif offload.optimizer == "nvme":
        total += 16 * min(trained, ranks * _SWAP_ELEMENTS)
    if offload.parameters == "cpu":
        total += 2 * (frozen + trained)
    return total
