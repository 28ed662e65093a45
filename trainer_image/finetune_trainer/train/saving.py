"""Saving is collective: states are gathered from all ranks while rank 0 keeps them. Either all ranks go on, or all fail alike.

Large checkpoints are only copied to host memory at a step's end; another process writes and seals them while training goes
on, one at a time. Its failure is told to all ranks at the next log line or checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune_api.contract import Cause

from finetune_trainer import sealed
from finetune_trainer.errors import StageError
from finetune_trainer.train.checkpoint import Checkpoint, CheckpointStore, checkpoint_in
from finetune_trainer.train.engines.engine import Engine
from finetune_trainer.train.engines.room import fits_on_host
from finetune_trainer.train.gang import Gang, Pause
from finetune_trainer.train.staging import Staging

SMALL_BYTES = 64 << 20
"""Up to this size a checkpoint is written at once: it takes no longer than starting a process."""


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
        self._in_flight = False

    def save(self, state: dict[str, Any], manifest: dict[str, Any], *, wait: bool = False) -> list[Checkpoint]:
        """Save the engine as it is now. Returns what was sealed meanwhile; with `wait` that is all there is."""
        done = self.settle(wait=True)
        tensors = self._engine.export()

        def keep() -> Checkpoint | None:
            assert self._store is not None
            try:
                if self._engine.state_bytes <= SMALL_BYTES or not self._fits():
                    return self._store.seal(tensors, state, manifest)
                began = time.perf_counter()
                self._staging.clear()
                for kind, name, tensor in tensors:
                    self._staging.add(kind, name, tensor)
            except OSError:
                for _ in tensors:  # the others are in the middle of the same collectives
                    pass
                raise
            staged = time.perf_counter() - began
            self._writing = _Writing(self._store, self._staging, state, manifest, staged_seconds=staged)
            return None

        if not self._gang.is_first:
            with self._paused():  # rank 0 writes between them
                for _ in tensors:
                    pass
        checkpoint = self._gang.on_first(keep, paused=self._paused)
        if checkpoint is not None:
            return [*done, checkpoint]
        self._in_flight = True
        return [*done, *(self.settle(wait=True) if wait else ())]

    def settle(self, *, wait: bool) -> list[Checkpoint]:
        """The checkpoint that was being written, once it is sealed; empty if there is none, or if it takes on and nobody waits."""
        if not self._in_flight:
            return []
        checkpoint = self._gang.on_first(
            lambda: self._writing.result(wait=wait) if self._writing else None, paused=self._paused
        )
        if checkpoint is None:
            return []
        self._in_flight, self._writing = False, None
        return [checkpoint]

    def finish(self) -> None:
        """For the end, whatever it is. Not collective: rank 0 lets its writer end, and nothing is said of how."""
        if self._writing is not None:
            self._writing.process.wait()

    def _fits(self) -> bool:
        missing = self._engine.state_bytes - self._staging.capacity
        return missing <= 0 or fits_on_host(missing)


class _Writing:
    """A checkpoint on its way to the storage."""

    def __init__(
        self,
        store: CheckpointStore,
        staging: Staging,
        state: dict[str, Any],
        manifest: dict[str, Any],
        *,
        staged_seconds: float,
    ) -> None:
        self._staged_seconds = staged_seconds
        order = {
            "store": {
                "folder": str(store.folder),
                "config_hash": store.config_hash,
                "resumable": sorted(store.resumable),
                "keep": store.keep,
            },
            "fence": {
                "path": str(store.fence.path),
                "attempt": store.fence.attempt,
                "accepted": sorted(store.fence.accepted),
            },
            "descriptors": staging.descriptors,
            "places": staging.wire(),
            "state": state,
            "manifest": manifest,
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

    def result(self, *, wait: bool) -> Checkpoint | None:
        """None if it is not done and nobody waits. Raises what the writer met."""
        if not wait and self.process.poll() is None:
            return None
        assert self.process.stdout is not None
        said = self.process.stdout.read()
        status = self.process.wait()
        try:
            answer = json.loads(said)
        except ValueError:
            raise StageError(
                f"the process that writes checkpoints ended with status {status} before it had sealed one",
                remedy="give the pod more memory if it was killed for that, and try again",
            ) from None
        if "sealed" in answer:
            folder = Path(answer["sealed"])
            manifest = sealed.read_manifest(folder)
            if manifest is None:
                raise StageError(f"checkpoint {folder.name} is gone from the workspace as soon as it was sealed")
            return replace(checkpoint_in(folder, manifest), seconds=self._staged_seconds + answer["seconds"])
        if "errno" in answer:
            raise OSError(answer["errno"], answer["strerror"], answer["filename"])
        raise _Failed(answer["exit_code"], Cause.model_validate(answer["cause"]))


class _Failed(StageError):
    """What the writer failed with."""

    def __init__(self, exit_code: int, cause: Cause) -> None:
        super().__init__(cause.message, code=cause.code, remedy=cause.remedy)
        self.exit_code = exit_code
