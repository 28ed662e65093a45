"""The environment of a stage's worker processes: who they are, where they may write, and what libraries must know."""

from __future__ import annotations

import ctypes
import os
import resource
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from finetune_api.contract import (
    ENV_MASTER_ADDR,
    ENV_MASTER_PORT,
    ENV_NODE_NAME,
    ENV_NODE_RANK,
    RENDEZVOUS_PORT,
    RunConfig,
)

from finetune_trainer.errors import BadInput

LOOPBACK = "127.0.0.1"
_CAP_IPC_LOCK = 14
_LOCKED_BYTES = 2**30
"""NCCL locks its buffers for each connection, hundreds of MiB in all; containers inherit 8 MiB from systemd's default."""
_SPINS = "300"
"""Of libgomp, instead of 300,000 (its manual, GOMP_SPINCOUNT). Two pods on two cores: a third to a half of the time a step; one alone:
2% to 22% more (benchmarks/RESULTS.md)."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where this pod stands in its gang. `processes` run in each of `nodes` pods."""

    node: int
    nodes: int
    processes: int
    master_addr: str
    master_port: int

    @property
    def world_size(self) -> int:
        return self.nodes * self.processes

    def rank(self, local: int) -> int:
        return self.node * self.processes + local


def place(config: RunConfig) -> Place:
    """Static rendezvous: ranks follow from the completion index; several pods meet at pod 0's name and nowhere else.

    Raises BadInput when the pod was not told its index or the address.
    """
    if config.stage != "train":
        return Place(0, 1, 1, LOOPBACK, 0)
    compute = config.spec.compute
    nodes, processes = compute.nodes, compute.processes_per_node or 1
    node = int(os.environ.get(ENV_NODE_RANK) or 0)
    address = os.environ.get(ENV_MASTER_ADDR)
    if nodes > 1 and not (address and os.environ.get(ENV_NODE_RANK)):
        raise BadInput(
            f"a gang of {nodes} pods needs {ENV_NODE_RANK} and {ENV_MASTER_ADDR} in each pod's environment",
            code="InvalidSpec",
            remedy="let the operator create the pods, or set both",
        )
    if not 0 <= node < nodes:
        raise BadInput(f"{ENV_NODE_RANK} is {node}, but spec.compute.nodes is {nodes}", code="InvalidSpec")
    port = int(os.environ.get(ENV_MASTER_PORT) or 0)
    if nodes == 1:  # nobody else must know the port, so several gangs can share a machine
        return Place(0, 1, processes, LOOPBACK, port or free_port())
    assert address
    return Place(node, nodes, processes, address, port or RENDEZVOUS_PORT)


def worker_environment(config: RunConfig, place: Place, local: int, folder: Path) -> dict[str, str]:
    """The environment of worker `local`. What the user set for a library wins over what is only a default here."""
    cores = available_cores()
    defaults = {
        "OMP_NUM_THREADS": str(max(1, cores // place.processes)),
        "TOKENIZERS_PARALLELISM": "true" if config.stage == "prepare" else "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "DEEPSPEED_LOG_LEVEL": "error",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        "USER": "trainer",  # a fixed uid has no passwd entry, and torch asks for a name
        "LOGNAME": "trainer",
    }
    if config.stage != "prepare" or not any(location.uri.startswith("hf://") for location in _locations(config)):
        defaults |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}  # prepare alone downloads
    if _quota() is None and "OMP_WAIT_POLICY" not in os.environ:
        # Other pods may compute on the same cores: a thread that waits for one of its own by spinning keeps it from running.
        defaults["GOMP_SPINCOUNT"] = _SPINS
    if is_loopback(place.master_addr):
        defaults["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    fixed = {
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "HF_HOME": str(folder / "huggingface"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "PYTHONUNBUFFERED": "1",
        "RANK": str(place.rank(local)),
        "LOCAL_RANK": str(local),
        "WORLD_SIZE": str(place.world_size),
        "LOCAL_WORLD_SIZE": str(place.processes),
        "LOCAL_SIZE": str(place.processes),  # DeepSpeed's CPU accelerator reads this one
        "MASTER_ADDR": place.master_addr,
        "MASTER_PORT": str(place.master_port),
    }
    if config.spec.compute.device == "cpu":
        fixed |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return {**defaults, **os.environ, **fixed}


def make_folders(folder: Path) -> None:
    for name in ("home", "tmp", "huggingface", "inductor", "triton"):
        (folder / name).mkdir(parents=True, exist_ok=True)


def available_cores() -> int:
    """Cores that this container may use: its affinity and its cgroup's quota, whichever is less. At least 1."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    quota = _quota()
    return max(1, int(min(cores, quota) if quota else cores))


def oom_kills() -> int | None:
    """How often the kernel killed for memory in this cgroup; None where that cannot be read."""
    for path in (Path("/sys/fs/cgroup/memory.events"), Path("/sys/fs/cgroup/memory/memory.oom_control")):
        try:
            fields = dict(line.split() for line in path.read_text().splitlines() if len(line.split()) == 2)
        except OSError:
            continue
        if "oom_kill" in fields:
            return int(fields["oom_kill"])
    return None


def rdma_problem(devices: Path = Path("/dev/infiniband"), library: str = "libibverbs.so.1") -> str | None:
    """Why NCCL would use TCP, and only say so in its debug log, although this pod was given RDMA devices."""
    names = sorted(device.name for device in devices.glob("uverbs*"))
    if not names:
        return None
    begin = f"NCCL cannot use the RDMA devices of this pod ({', '.join(names)}) and falls back to TCP: "
    try:
        ctypes.CDLL(library)
    except OSError as error:
        return f"{begin}{error}; install libibverbs1 and ibverbs-providers in the image"
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY or limit >= _LOCKED_BYTES or _may_lock():
        return None
    return (
        f"{begin}it may lock {limit // 1024} KiB of memory; set LimitMEMLOCK=infinity for the container runtime of "
        f"{os.environ.get(ENV_NODE_NAME) or 'the node'}"
    )


def _may_lock() -> bool:
    """Whether this process has CAP_IPC_LOCK in effect. A container's user other than root never has."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return False
    effective = next((line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), "0")
    return bool(int(effective, 16) >> _CAP_IPC_LOCK & 1)


def is_loopback(address: str) -> bool:
    return address in ("localhost", "::1") or address.startswith("127.")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _locations(config: RunConfig) -> list:
    spec = config.spec
    adapter = [spec.method.init_from] if spec.method.init_from else []
    return [spec.model, *adapter, *spec.data.train, *(spec.data.validation or ()), *(spec.data.test or ())]


def _quota() -> float | None:
    """Cores that the cgroup allows; None where it sets no limit."""
    return _quota_v2() or _quota_v1()


def _quota_v2() -> float | None:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _quota_v1() -> float | None:
    folder = Path("/sys/fs/cgroup/cpu")
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        return quota / int((folder / "cpu.cfs_period_us").read_text()) if quota > 0 else None
    except (OSError, ValueError):
        return None
