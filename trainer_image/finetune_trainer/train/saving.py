"""Saving: every rank writes what it owns, at the same time as the others, and rank 0 seals when all of it is there.

Large checkpoints are only copied to host memory at a step's end; another process of each rank writes them while training goes
on, one at a time. No collective waits for the disk: ranks ask each other, in short collectives, whether all have written.
What one rank fails with, all raise.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from finetune_api.contract import Cause

from finetune_trainer import sealed
from finetune_trainer.errors import StageError
from finetune_trainer.train.checkpoint import Checkpoint, CheckpointStore, Flat, Target, parts_missing, write_part
from finetune_trainer.train.engines.engine import Engine
from finetune_trainer.train.engines.room import fits_on_host
from finetune_trainer.train.gang import Gang, Pause
from finetune_trainer.train.staging import Staging

SMALL_BYTES = 64 << 20
"""Up to this size a checkpoint is written at once: it takes no longer than starting a process."""

_ASK_SECONDS = 1.0
_OTHERS_SECONDS = 15.0


class _Writing(Protocol):
    def wait(self, seconds: float) -> bool:
        """Whether it has ended, after so many seconds at most."""
        ...

    def result(self) -> float:
        """The seconds it took, once it has ended. Raises what it met."""
        ...


class Saver:
    """`store` is rank 0's; `paused` is the watchdog's, for the time that storage takes.

    Whatever raises, raises on every rank: OSError (StorageFull), PeerLost (Superseded).
    """

    def __init__(
        self,
        gang: Gang,
        engine: Engine,
        store: CheckpointStore | None,
        paused: Pause = contextlib.nullcontext,
    ) -> None:
        self._gang = gang
        self._engine = engine
        self._store = store
        self._paused = paused
        self._staging = Staging()
        self._writing: _Writing | None = None
        self._seal: Callable[[], Checkpoint] | None = None
        self._target: Target | None = None

    def save(self, state: dict[str, Any], manifest: dict[str, Any], *, wait: bool = False) -> list[Checkpoint]:
        """Save the engine as it is now. Returns what was sealed meanwhile; with `wait` that is all there is."""
        done = self.settle(wait=True)
        store = self._store
        target = self._gang.on_first(lambda: store.begin(manifest["step"]) if store else None, paused=self._paused)
        assert target is not None
        self._target = target
        self._seal = (lambda: store.seal(target, state, manifest)) if store else None
        at_once = self._engine.state_bytes <= SMALL_BYTES or not all(self._gang.gather(self._fits()))
        self._writing = self._write_now(target) if at_once else self._write_later(target)
        return [*done, *(self.settle(wait=True) if wait or at_once else ())]

    def settle(self, *, wait: bool) -> list[Checkpoint]:
        """The checkpoint that was being written, sealed; empty if there is none, or if it is not done and need not be waited for."""
        writing = self._writing
        if writing is None:
            return []
        if wait:
            _until_all(self._gang, writing.wait, self._paused)
        elif not all(self._gang.gather(writing.wait(0.0))):
            return []
        self._writing = None
        try:
            seconds = max(self._gang.on_all(writing.result))
            began = time.perf_counter()
            checkpoint = self._gang.on_first(lambda: self._seal() if self._seal else None, paused=self._paused)
        except (StageError, OSError):
            if self._target is not None and self._gang.is_first:
                shutil.rmtree(self._target.folder, ignore_errors=True)
            raise
        assert checkpoint is not None
        return [replace(checkpoint, seconds=seconds + time.perf_counter() - began)]

    def finish(self) -> None:
        """For the end, whatever it is. Not collective: each rank lets its writer end, and rank 0 seals if all are done soon."""
        if self._writing is None or self._target is None:
            return
        while not self._writing.wait(_ASK_SECONDS):
            pass
        if self._store is None or self._seal is None:
            return
        deadline = time.monotonic() + _OTHERS_SECONDS
        with contextlib.suppress(StageError, OSError):  # what ended the training is what is reported
            self._writing.result()
            while (missing := parts_missing(self._target, self._gang.world_size)) and time.monotonic() < deadline:
                time.sleep(0.1)
            if not missing:
                self._seal()

    def _write_now(self, target: Target) -> _Writing:
        """From the engine's own memory, while training waits."""

        def fragments() -> Iterator[Flat]:
            for one in self._engine.export():
                flat = one.values.detach().float().cpu().contiguous()
                yield one.kind, one.name, one.shape, one.start, memoryview(flat.numpy())

        return _Thread(lambda: write_part(target, self._gang.rank, fragments()))

    def _write_later(self, target: Target) -> _Writing:
        began = time.perf_counter()
        try:
            self._staging.clear()
            for one in self._engine.export():
                self._staging.add(one)
        except OSError as raised:
            error = raised  # told to all when they settle

            def fail() -> None:
                raise error

            return _Thread(fail)
        return _Process(target, self._gang.rank, self._staging, staged_seconds=time.perf_counter() - began)

    def _fits(self) -> bool:
        missing = self._engine.state_bytes // self._gang.world_size - self._staging.capacity
        return missing <= 0 or fits_on_host(missing)


def whole(
    gang: Gang,
    choose: Callable[[CheckpointStore], Checkpoint | None],
    store: CheckpointStore | None,
    verified: set[Path],
    *,
    say: Callable[[str], None],
    paused: Pause = contextlib.nullcontext,
) -> Checkpoint | None:
    """Collective: what `choose` gives, if its content is as sealed. Damaged ones are deleted, said, and chosen no more.

    Each rank hashes its part of the files, and nothing that is among `verified`.
    """
    while True:
        one = gang.on_first(lambda: choose(store) if store else None, paused=paused)
        if one is None or one.folder in verified:
            return one

        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            damage = pool.submit(_damage, one.folder, gang)
            _until_all(gang, functools.partial(_ended, damage), paused)
        found = [torn for torn in gang.on_all(damage.result) if torn is not None]
        if not found:
            verified.add(one.folder)
            return one
        if store is not None:
            say(f"checkpoint {one.folder.name} is damaged and not used: {found[0]}")
            store.delete(one)


def _until_all(gang: Gang, done: Callable[[float], bool], paused: Pause) -> None:
    """Collective: wait until all ranks are `done`, which says so after some seconds at most.

    The watchdog is paused while a rank waits for itself, and not while it asks the others: there one that hangs is found.
    """
    while True:
        with paused():
            mine = done(_ASK_SECONDS)
        if all(gang.gather(mine)):
            return


def _ended(future: concurrent.futures.Future[Any], seconds: float) -> bool:
    return bool(concurrent.futures.wait([future], seconds).done)


def _damage(folder: Path, gang: Gang) -> str | None:
    """The first file of this rank's part that is not as it was sealed."""
    try:
        sealed.verify(folder, rank=gang.rank, ranks=gang.world_size)
    except sealed.Torn as torn:
        return str(torn)
    return None


class _Thread:
    """A checkpoint that is written from this process."""

    def __init__(self, write: Callable[[], None]) -> None:
        self._began = time.perf_counter()
        self._ended = self._began
        pool = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._future = pool.submit(self._run, write)
        pool.shutdown(wait=False)

    def _run(self, write: Callable[[], None]) -> None:
        try:
            write()
        finally:
            self._ended = time.perf_counter()

    def wait(self, seconds: float) -> bool:
        return _ended(self._future, seconds)

    def result(self) -> float:
        self._future.result()
        return self._ended - self._began


class _Process:
    """A checkpoint that another process writes."""

    def __init__(self, target: Target, rank: int, staging: Staging, *, staged_seconds: float) -> None:
        self._staged_seconds = staged_seconds
        order = {
            "folder": str(target.folder),
            "fence": str(target.fence),
            "attempt": target.attempt,
            "rank": rank,
            "descriptors": staging.descriptors,
            "places": staging.places,
        }
        with tempfile.TemporaryFile("w+") as file:  # a pipe would have us wait until the writer reads it
            json.dump(order, file)
            file.seek(0)
            self.process = subprocess.Popen(
                [sys.executable, "-m", "finetune_trainer.train.writer"],
                stdin=file,
                stdout=subprocess.PIPE,
                pass_fds=staging.descriptors,
                text=True,
            )

    def wait(self, seconds: float) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        return self.process.returncode is not None

    def result(self) -> float:
        assert self.process.stdout is not None
        said = self.process.stdout.read()
        status = self.process.wait()
        try:
            answer = json.loads(said)
        except ValueError:
            raise StageError(
                f"the process that writes checkpoints ended with status {status} before it had written one",
                remedy="give the pod more memory if it was killed for that, and try again",
            ) from None
        if "errno" in answer:
            raise OSError(answer["errno"], answer["strerror"], answer["filename"])
        if "cause" in answer:
            raise _Failed(answer["exit_code"], Cause.model_validate(answer["cause"]))
        return self._staged_seconds + float(answer["seconds"])


class _Failed(StageError):
    """What the writer failed with."""

    def __init__(self, exit_code: int, cause: Cause) -> None:
        super().__init__(cause.message, code=cause.code, remedy=cause.remedy)
        self.exit_code = exit_code
