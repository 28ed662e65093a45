"""The last word of a gang: each worker leaves a record, PID 1 draws the verdict and hands it to Kubernetes."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune_api.contract import ENV_TERMINATION_LOG, TERMINATION_LOG, Cause, ExitCode, TerminationMessage
from finetune_api.status import Stage

from finetune_trainer.environment import is_loopback
from finetune_trainer.errors import FULL, StageError, Stopped

_UNKNOWN = 1
_NO_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "'out of memory'", "CUBLAS_STATUS_ALLOC_FAILED")
_ASKED_BYTES = re.compile(r"you tried to allocate (\d+) bytes")  # torch, on a CPU
_ASKED = re.compile(r"(?:Tried|Unable) to allocate ([\d.]+ [KMGTPE]?i?B)")  # torch on CUDA, numpy
_FREE = re.compile(r"GPU \d+ has a total capacity of [\d.]+ \w+ of which [\d.]+ \w+ is free")
_PEER = re.compile(r"by (?:remote )?peer \[?([^\s\[\]<]+)")  # gloo: an address, NCCL: a host name
_LOST_PEER = ("gloo/transport", "remote worker", "closed by peer", "reset by peer", "Broken pipe", "Timed out waiting")


def record_path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.record.json"


def stacks_path(folder: Path, rank: int) -> Path:
    """Where a worker writes its threads' stacks when PID 1 asks for them, or when it loses a peer."""
    return folder / f"stacks-rank-{rank}.txt"


def write_record(folder: Path, record: TerminationMessage) -> None:
    """Leave a worker's last word where PID 1 looks for it."""
    path = record_path(folder, record.rank)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(record.model_dump_json(by_alias=True, exclude_none=True))
    temporary.replace(path)


def read_record(folder: Path, rank: int) -> TerminationMessage | None:
    try:
        return TerminationMessage.decode(record_path(folder, rank).read_text())
    except OSError:
        return None


def outcome_of(
    error: BaseException | None, *, known: dict[str, Any], stage: Stage, rank: int, now: float
) -> TerminationMessage:
    """What a worker that ended with `error` (None: well) has to say. `now` is Unix time in seconds."""
    if error is None:
        return TerminationMessage(
            stage=stage, outcome="succeeded", exit_code=ExitCode.DONE, rank=rank, time=now, **known
        )
    code, cause = classify(error, stage, rank)
    outcome = "stopped" if isinstance(error, Stopped) else "failed"
    return TerminationMessage(stage=stage, outcome=outcome, exit_code=code, rank=rank, time=now, cause=cause, **known)


def classify(error: BaseException, stage: Stage = "train", rank: int | None = None) -> tuple[int, Cause]:
    """Exit code and cause of any exception in `stage`, ours or a library's. `rank`: whose exception it is."""
    if isinstance(error, StageError):
        return int(error.exit_code), error.cause
    kinds = {kind.__name__ for kind in type(error).__mro__}
    text = " ".join(str(error).split()) or type(error).__name__
    if (isinstance(error, OSError) and error.errno in FULL) or "No space left on device" in text:
        return _UNKNOWN, Cause(
            code="StorageFull",
            message=f"no space is left on the volume of {getattr(error, 'filename', None) or 'the workspace'}; what was sealed before is intact",
            remedy="enlarge the claim, or lower checkpoint.keep",
        )
    if out_of_memory(error):
        return ExitCode.OUT_OF_MEMORY, Cause(
            code="OutOfMemory",
            message=f"memory ran out: {allocation(error)}",
            remedy=_more_memory(stage, "lower spec.data.maxLength, raise spec.compute.nodes, use larger GPUs"),
        )
    if kinds & {"DistBackendError", "DistNetworkError", "DistStoreError"} or (
        isinstance(error, RuntimeError) and any(sign in text for sign in _LOST_PEER)
    ):
        return ExitCode.PEER_LOST, Cause(code="PeerLost", message=_lost_peer(text, rank))
    return _UNKNOWN, Cause(code="Unknown", message=f"{type(error).__name__}: {text[:1500]}")


def _lost_peer(text: str, rank: int | None) -> str:
    """One sentence for what a communication library reported. The log has its own words."""
    who = "a rank" if rank is None else f"rank {rank}"
    if re.search("timed out|timeout", text, re.IGNORECASE):
        return f"{who} got no answer from another rank in time"
    peer = _PEER.search(text)
    where = f" at {peer[1]}" if peer is not None and not is_loopback(peer[1]) else ""
    return f"{who} lost its connection to another rank{where}"


def out_of_memory(error: BaseException) -> bool:
    """Whether a device, or this process, could not be given the memory it asked for."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return (
        "OutOfMemoryError" in kinds
        or isinstance(error, MemoryError)
        or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_MEMORY))
    )


def allocation(error: BaseException) -> str:
    """What was asked for, as far as the exception tells, in one line."""
    text = " ".join(str(error).split())
    if (found := _ASKED_BYTES.search(text)) is not None:
        return f"{_size(int(found[1]))} more were asked for, and the system had no more to give"
    if (found := _ASKED.search(text)) is not None:
        left = _FREE.search(text)
        return f"{found[1]} more were asked for" + (f"; {left[0]}" if left else "")
    return text[:300] or "the process could not be given what it asked for"


def _more_memory(stage: Stage, in_training: str) -> str:
    """The memory limit of the stage's own pods; `in_training` is what else helps there."""
    limit = f"raise spec.pods.{stage}.resources.limits.memory"
    return f"{in_training}, or {limit}" if stage == "train" else limit


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if count < 1024 or unit == "PiB":
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.2f} {unit}"
        count /= 1024
    raise AssertionError


def died(stage: Stage, rank: int, *, status: int, oom_killed: bool, now: float) -> TerminationMessage:
    """The record of a worker that left none. `status` is its exit code, or minus the signal that ended it."""
    if status == -signal.SIGKILL and oom_killed:
        code: int = ExitCode.OUT_OF_MEMORY
        cause = Cause(
            code="OutOfMemory",
            message=f"the kernel killed rank {rank}: the container reached its memory limit",
            remedy=_more_memory(stage, "lower spec.data.maxLength or spec.compute.processesPerNode"),
        )
    elif status == -signal.SIGKILL:
        code = _UNKNOWN
        message = f"rank {rank} was killed with SIGKILL, not for the memory limit of its container"
        cause = Cause(code="Killed", message=message)
    else:
        code = _UNKNOWN
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit code {status}"
        cause = Cause(code="Unknown", message=f"rank {rank} ended by {how} without a report; see its log")
    return TerminationMessage(stage=stage, outcome="failed", exit_code=code, rank=rank, time=now, cause=cause)


def verdict(records: Sequence[TerminationMessage]) -> TerminationMessage:
    """The record that speaks for all ranks of this pod.

    A failure with a cause of its own beats one that only saw a peer go; among equals the earliest counts. A gang has
    succeeded or stopped when all of it did; then the lowest rank speaks.
    """
    if not records:
        raise ValueError("a gang without ranks has no verdict")

    def weight(record: TerminationMessage) -> int:
        if record.outcome == "succeeded":
            return 3
        if record.outcome == "stopped":
            return 2
        return 1 if record.exit_code == ExitCode.PEER_LOST else 0

    worst = min(weight(record) for record in records)
    candidates = [record for record in records if weight(record) == worst]
    if worst >= 2:
        return min(candidates, key=lambda record: record.rank)
    return _with_what_others_know(min(candidates, key=lambda record: (record.time, record.rank)), records)


def write_message(message: TerminationMessage) -> None:
    """Hand the verdict to the kubelet. A path that cannot be written is no reason to fail: the exit code says the same in short."""
    path = Path(os.environ.get(ENV_TERMINATION_LOG) or TERMINATION_LOG)
    try:
        path.write_bytes(message.encode())
    except OSError as error:
        print(f"cannot write the termination message to {path}: {error.strerror}", flush=True)


def _with_what_others_know(chosen: TerminationMessage, records: Sequence[TerminationMessage]) -> TerminationMessage:
    """A rank that was killed knows no step and no checkpoint; its peers do."""
    update = {}
    for name in ("step", "resumed_from_step", "last_checkpoint", "step_seconds", "checkpoint_seconds"):
        if getattr(chosen, name) is None:
            known = [getattr(record, name) for record in sorted(records, key=lambda r: r.rank)]
            update[name] = next((value for value in known if value is not None), None)
    return chosen.model_copy(update=update)
