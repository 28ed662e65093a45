"""Which record speaks for a pod, and what an exception means."""

from __future__ import annotations

import errno
import re
import signal
from pathlib import Path

import finetune_trainer
import pytest
from finetune_api.contract import CheckpointStatus, ExitCode, TerminationMessage
from finetune_api.status import STAGES, Stage
from finetune_trainer.errors import BadInput, Diverged, PeerLost, Stopped
from finetune_trainer.termination import classify, died, outcome_of, verdict


def record(rank: int, error: BaseException | None, now: float, **known: object) -> TerminationMessage:
    return outcome_of(error, known=known, stage="train", rank=rank, now=now)  # type: ignore[arg-type]


def killed(rank: int, now: float, *, oom: bool = False) -> TerminationMessage:
    return died("train", rank, status=-signal.SIGKILL, oom_killed=oom, now=now)


DONE, STOP, LOST = None, Stopped("stopped", code="Stopped"), PeerLost("gone", code="PeerLost")
BAD, NAN = BadInput("bad", code="InvalidModel"), Diverged("nan", code="Diverged")


@pytest.mark.parametrize(
    ("records", "rank", "exit_code"),
    [
        ([record(0, DONE, 2), record(1, DONE, 1)], 0, ExitCode.DONE),
        ([record(1, STOP, 1), record(0, STOP, 2)], 0, ExitCode.STOPPED),
        ([record(0, DONE, 1), record(1, STOP, 2)], 1, ExitCode.STOPPED),
        ([record(0, STOP, 1), record(1, LOST, 2)], 1, ExitCode.PEER_LOST),
        ([record(0, LOST, 2), record(1, LOST, 1)], 1, ExitCode.PEER_LOST),
        ([record(0, BAD, 2), record(1, BAD, 1)], 1, ExitCode.BAD_INPUT),
        ([record(0, LOST, 1), record(1, NAN, 2)], 1, ExitCode.DIVERGED),
        ([record(0, LOST, 1), killed(1, 2)], 1, 1),
        ([record(0, LOST, 1), killed(1, 2, oom=True)], 1, ExitCode.OUT_OF_MEMORY),
        ([record(0, ValueError("x"), 1), killed(1, 2)], 0, 1),
    ],
)
def test_verdict(records: list[TerminationMessage], rank: int, exit_code: int) -> None:
    for order in (records, records[::-1]):
        said = verdict(order)
        assert (said.rank, said.exit_code) == (rank, exit_code)


def test_what_a_killed_rank_cannot_know_its_peers_tell() -> None:
    checkpoint = CheckpointStatus(step=40, path="x")
    known = {
        "step": 47,
        "last_checkpoint": checkpoint,
        "resumed_from_step": 20,
        "step_seconds": 1.5,
        "checkpoint_seconds": 9.0,
    }
    said = verdict([record(0, LOST, 3, **known), killed(1, 2)])
    assert said.rank == 1
    assert {name: getattr(said, name) for name in known} == known


class OutOfMemoryError(RuntimeError):
    """As torch's, by name."""


class DistBackendError(RuntimeError):
    """As torch.distributed's, by name."""


@pytest.mark.parametrize(
    ("error", "exit_code", "code"),
    [
        (BAD, 3, "InvalidModel"),
        (OutOfMemoryError("CUDA out of memory"), 4, "OutOfMemory"),
        (MemoryError(), 4, "OutOfMemory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 4, "OutOfMemory"),
        (DistBackendError("NCCL error"), 7, "PeerLost"),
        (DistBackendError("NCCL error: unhandled cuda error, Cuda failure 2 'out of memory'"), 4, "OutOfMemory"),
        (RuntimeError("[../gloo/transport/tcp/pair.cc:561] Connection closed by peer"), 7, "PeerLost"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/step-4"), 1, "StorageFull"),
        (RuntimeError("Error: No space left on device (os error 28)"), 1, "StorageFull"),
        (OSError(errno.EIO, "Input/output error"), 1, "Unknown"),
        (KeyError("x"), 1, "Unknown"),
    ],
)
def test_exceptions(error: BaseException, exit_code: int, code: str) -> None:
    got, cause = classify(error)
    assert (got, cause.code) == (exit_code, code)
    assert "\n" not in cause.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "[../gloo/transport/tcp/pair.cc:561] Connection closed by peer [10.0.0.3]:26341. This is typically caused by a remote worker crashing.",
            "rank 2 lost its connection to another rank at 10.0.0.3",
        ),
        (
            "[../gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:26341",
            "rank 2 lost its connection to another rank",
        ),
        (
            "NCCL error: remote process exited. Last error: socketProgress: Connection closed by remote peer bot-train-1-0.bot<53428>",
            "rank 2 lost its connection to another rank at bot-train-1-0.bot",
        ),
        (
            "[../gloo/unbound_buffer.cc:78] Timed out waiting 4000ms for recv operation",
            "rank 2 got no answer from another rank in time",
        ),
    ],
)
def test_a_lost_peer_is_one_sentence(text: str, expected: str) -> None:
    got = outcome_of(DistBackendError(text), known={}, stage="train", rank=2, now=0.0)
    assert got.cause is not None
    assert (got.exit_code, got.cause.message) == (7, expected)


def exhausted(kind: str) -> BaseException:
    """As the libraries really raise it."""
    import numpy as np
    import torch

    try:
        if kind == "torch":
            torch.empty(1 << 50, dtype=torch.float32)
        np.empty(1 << 57, dtype=np.float64)
    except (RuntimeError, MemoryError) as error:
        return error
    raise AssertionError("so much memory there is not")


CUDA = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 139.81 GiB of which 1.25 GiB is free. "
    "Including non-PyTorch memory, this process has 138.55 GiB memory in use."
)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (lambda: exhausted("torch"), "4.00 PiB more were asked for"),
        (lambda: exhausted("numpy"), "1.00 EiB more were asked for"),
        (lambda: OutOfMemoryError(CUDA), "2.50 GiB more were asked for; GPU 0 has a total capacity of 139.81 GiB of which 1.25 GiB is free"),
        (MemoryError, "could not be given what it asked for"),
    ],
)  # fmt: skip
def test_lack_of_memory_says_how_much_was_asked_for(error, says: str) -> None:  # type: ignore[no-untyped-def]
    code, cause = classify(error())
    assert (code, cause.code) == (4, "OutOfMemory")
    assert says in cause.message


@pytest.mark.parametrize("stage", STAGES)
def test_the_memory_remedy_names_the_pods_of_its_own_stage(stage: Stage) -> None:
    killed = died(stage, 0, status=-signal.SIGKILL, oom_killed=True, now=0)
    for cause in (killed.cause, outcome_of(MemoryError(), known={}, stage=stage, rank=0, now=0).cause):
        assert re.findall(r"spec\.pods\.(\w+)\.resources\.limits\.memory", cause.remedy) == [stage]
        assert ("maxLength" in cause.remedy) == (stage == "train")


def test_pods_fields_are_named_from_spec_on() -> None:
    for file in Path(finetune_trainer.__file__).parent.rglob("*.py"):
        assert not re.search(r"(?<!spec\.)\bpods\.(common|prepare|train|evaluate|publish)\.", file.read_text()), file


def test_a_signal_is_named() -> None:
    said = died("prepare", 0, status=-signal.SIGSEGV, oom_killed=True, now=0)
    assert said.exit_code == 1
    assert "SIGSEGV" in said.cause.message


def test_a_rank_that_was_killed_is_distinguished_from_one_that_reached_its_memory_limit() -> None:
    assert killed(1, 2).cause.code == "Killed"
    assert killed(1, 2, oom=True).cause.code == "OutOfMemory"
