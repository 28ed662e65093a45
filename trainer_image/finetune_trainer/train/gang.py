"""The ranks of a training as one: joining, and every collective that is not part of the model or its engine.

Small values travel over a gloo group of their own, so that they neither wait for the GPU nor mix with its traffic.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from finetune_trainer.environment import is_loopback
from finetune_trainer.errors import PeerLost, StageError
from finetune_trainer.stage import StageContext
from finetune_trainer.termination import classify

T = TypeVar("T")
Pause = Callable[[], AbstractContextManager[None]]

JOIN_TIMEOUT = datetime.timedelta(minutes=15)
"""Peers may still be pulling their image or loading the model. Later hangs are the watchdog's to find, much sooner."""

_STORAGE_TIMEOUT = datetime.timedelta(minutes=60)
"""Ranks wait for each other while rank 0 writes; a large checkpoint on slow storage takes its time."""

_NAME_SECONDS = 120.0


class _Relayed(StageError):
    """What a rank failed with, on the others."""

    def __init__(self, exit_code: int, cause: Any) -> None:
        super().__init__(cause.message, code=cause.code, remedy=cause.remedy)
        self.exit_code = exit_code


class Gang:
    """`rank` of `world_size`. With one rank every collective is the identity."""

    def __init__(self, context: StageContext, device: torch.device) -> None:
        self.rank = context.rank
        self.world_size = context.world_size
        self.device = device
        self._stop = context.stop
        joined = dist.get_world_size() if dist.is_initialized() else 1
        if joined != self.world_size:
            raise StageError(f"rank {self.rank} should be one of {self.world_size}, but torch counts {joined}")
        self._group = dist.new_group(backend="gloo", timeout=_STORAGE_TIMEOUT) if self.world_size > 1 else None
        self._flag = torch.zeros(1, dtype=torch.int32)
        self._work: dist.Work | None = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def asked_to_stop(self) -> bool:
        """Whether this rank was: the others may not know yet."""
        return self._stop.requested

    def gather(self, value: T) -> list[T]:
        """Everybody's value, by rank."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def sums(self, values: list[float]) -> list[float]:
        """Element-wise sums over ranks, in float64."""
        if self._group is None:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=self._group)
        return tensor.tolist()

    def barrier(self) -> None:
        if self._group is not None:
            dist.barrier(group=self._group)

    def on_first(self, act: Callable[[], T], *, paused: Pause = contextlib.nullcontext) -> T:
        """Run `act` on rank 0 alone and give its result to all. What it raises, all raise.

        `paused` is for an `act` that may take long, as the watchdog's: it is around the act, and around the others' wait for it.
        Rank 0 waits for the others outside of it, where one that hangs is found.
        """
        result: Any = None
        error: Exception | None = None
        if self.is_first:
            try:
                with paused():
                    result = act()
            except (StageError, OSError) as raised:
                error = raised
        if self._group is None:
            if error is not None:
                raise error
            return result
        box = [(result, None if error is None else classify(error))]
        with contextlib.nullcontext() if self.is_first else paused():
            dist.broadcast_object_list(box, src=0, group=self._group)
        result, failure = box[0]
        if error is not None:
            raise error
        if failure is not None:
            raise _Relayed(*failure)
        return result

    def on_all(self, act: Callable[[], T]) -> list[T]:
        """Run `act` on every rank and give all results to all, by rank. What one raises, all raise."""
        result: Any = None
        error: Exception | None = None
        try:
            result = act()
        except (StageError, OSError) as raised:
            error = raised
        said = self.gather((result, None if error is None else classify(error)))
        if error is not None:
            raise error
        for _, failure in said:
            if failure is not None:
                raise _Relayed(*failure)
        return [result for result, _ in said]

    def propose_stop(self) -> None:
        """Begin to agree on stopping, while the step computes."""
        self._flag.fill_(int(self._stop.requested))
        if self._group is not None:
            self._work = dist.all_reduce(self._flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True)

    def stop_agreed(self) -> bool:
        """Whether any rank was asked to stop when it proposed. The same on every rank."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        return bool(self._flag.item())

    def should_stop(self) -> bool:
        """Both at once, for places that come less often than steps."""
        self.propose_stop()
        return self.stop_agreed()


def form(context: StageContext) -> Gang:
    """Meet the other ranks. Raises PeerLost when they do not come."""
    compute = context.config.spec.compute
    address = _resolve(context)
    cuda = compute.device == "cuda"
    device = torch.device("cuda", context.local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if context.world_size == 1 and compute.strategy in (None, "ddp"):
        return Gang(context, device)
    how: dict[str, Any] = {"timeout": JOIN_TIMEOUT}
    if context.world_size == 1:  # sharding libraries want a group all the same
        how["store"] = dist.HashStore()
    try:
        if not dist.is_initialized():
            dist.init_process_group("nccl" if cuda else "gloo", rank=context.rank, world_size=context.world_size, **how)
        return Gang(context, device)
    except dist.DistError as error:
        print(error, flush=True)
        raise PeerLost(
            f"rank {context.rank} could not connect to the other {context.world_size - 1} at {address} within {JOIN_TIMEOUT.total_seconds() / 60:.0f} minutes",
            code="PeerLost",
            remedy="check that all training pods were scheduled and that no network policy separates them",
        ) from error


def _resolve(context: StageContext) -> str:
    """Wait until the master's name is known: a headless Service publishes it some seconds after the pods start."""
    address = os.environ["MASTER_ADDR"]
    if is_loopback(address):
        return address
    deadline = time.monotonic() + _NAME_SECONDS
    while True:
        try:
            socket.getaddrinfo(address, None)
            return address
        except OSError as error:
            if time.monotonic() > deadline:
                raise PeerLost(
                    f"pod 0's name {address} is not known to DNS after {_NAME_SECONDS:.0f} s ({error})",
                    code="PeerLost",
                    remedy="see whether the gang's headless Service exists and whether cluster DNS answers",
                ) from error
            time.sleep(0.5)
