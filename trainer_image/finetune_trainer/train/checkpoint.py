"""Checkpoints, format 1: named tensors that belong to no engine, sealed, resumable at any world size and strategy.

    step-N/weights-*.safetensors      trainable weights by name, fp32
    step-N/optimizer-*.safetensors    exp_avg/NAME and exp_avg_sq/NAME, fp32
    step-N/state.json                 step, counts, positions of schedule, data and randomness
    step-N/manifest.json              format, files with sizes and hashes, world size, config hash, attempt, step, eval_loss

Randomness (dropout) is a function of seed, step and rank, and the data position one of the step: both need no more state
than the step.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from finetune_api.status import CheckpointStatus
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from finetune_trainer import sealed
from finetune_trainer.errors import StageError
from finetune_trainer.train.engines.engine import Named
from finetune_trainer.train.fence import Fence

KIND = "checkpoint"
FORMAT = 1
STATE = "state.json"
_FILE_BYTES = 2 << 30
_WEIGHTS = "weights"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A sealed one. `eval_loss` is None where validation did not run at its step."""

    folder: Path
    step: int
    attempt: int
    eval_loss: float | None
    time: float

    def status(self) -> CheckpointStatus:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.time))
        return CheckpointStatus(step=self.step, path=str(self.folder), time=stamp, eval_loss=self.eval_loss)


class CheckpointStore:
    """The folder of a run's checkpoints. Writing and deleting is for rank 0, which holds the fence."""

    def __init__(self, folder: Path, fence: Fence, config_hash: str, *, keep: int) -> None:
        self.fence = fence
        self._folder = folder
        self._config_hash = config_hash
        self._keep = keep
        for leftover in folder.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def sealed(self) -> list[Checkpoint]:
        """Those that count, oldest first. Their content is not verified."""
        found = []
        for folder, manifest in sealed_folders(self._folder):
            if (
                (manifest.get("kind"), manifest.get("format")) == (KIND, FORMAT)
                and manifest.get("config_hash") == self._config_hash
                and self.fence.counts(folder.name, manifest["attempt"])
            ):
                found.append(_checkpoint(folder, manifest))
        return sorted(found, key=lambda one: one.step)

    def newest(self) -> Checkpoint | None:
        return max(self.sealed(), key=lambda one: one.step, default=None)

    def whole(self, choose: Callable[[], Checkpoint | None], say: Callable[[str], None]) -> Checkpoint | None:
        """What `choose` (`newest` or `best`) gives, if its content is as sealed. Damaged ones are deleted, said, and chosen no more."""
        while (one := choose()) is not None:
            try:
                sealed.verify(one.folder)
                return one
            except sealed.Torn as torn:
                say(f"checkpoint {one.folder.name} is damaged and not used: {torn}")
                shutil.rmtree(one.folder)
        return None

    def best(self) -> Checkpoint | None:
        """The one with the lowest validation loss (the earliest of equals), or the newest if none was validated."""
        all_of_them = self.sealed()
        measured = [one for one in all_of_them if one.eval_loss is not None]
        if measured:
            return min(measured, key=lambda one: (one.eval_loss, one.step))
        return all_of_them[-1] if all_of_them else None

    def seal(self, tensors: Iterator[Named], state: dict[str, Any], manifest: dict[str, Any]) -> Checkpoint:
        """Write, seal and then let older ones go. `manifest` must hold step, eval_loss, world_size.

        Raises OSError when the storage is full or gone; the checkpoints before are untouched then.
        """
        step = manifest["step"]
        manifest = {
            "kind": KIND,
            "format": FORMAT,
            "config_hash": self._config_hash,
            "attempt": self.fence.attempt,
            "time": time.time(),
            **manifest,
        }
        staged = self._folder / f".step-{step}.staged"
        with sealed.sealing(staged, manifest) as folder:
            _write(tensors, folder)
            sealed.write_json(folder / STATE, state)
        self.fence.check()  # as late as can be: hashing and syncing may have taken minutes
        final = self._folder / f"step-{step}"
        sealed.replace_folder(staged, final)
        self._prune()
        return _checkpoint(final, manifest)

    def _prune(self) -> None:
        all_of_them = self.sealed()
        best = self.best()
        kept = {one.folder for one in all_of_them[-self._keep :]} | ({best.folder} if best else set())
        for one in all_of_them:
            if one.folder not in kept:
                shutil.rmtree(one.folder, ignore_errors=True)


class CheckpointReader:
    """Tensors of a sealed checkpoint by kind and name, one at a time."""

    def __init__(self, folder: Path) -> None:
        self._places: dict[str, Path] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                self._places |= dict.fromkeys(file.keys(), path)
        self._folder = folder

    def __call__(self, kind: str, name: str) -> torch.Tensor:
        key = f"{kind}/{name}"
        if key not in self._places:
            raise StageError(f"checkpoint {self._folder.name} holds no {key}: it was written by another version")
        with safe_open(self._places[key], framework="pt") as file:
            return file.get_tensor(key)

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        for key in self._places:
            kind, _, name = key.partition("/")
            if kind == _WEIGHTS:
                yield name, self(kind, name)


def sealed_folders(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every step folder with a manifest, whoever sealed it."""
    for one in sorted(folder.glob("step-*")):
        manifest = sealed.read_manifest(one)
        if manifest is not None:
            yield one, manifest


def _checkpoint(folder: Path, manifest: dict[str, Any]) -> Checkpoint:
    return Checkpoint(folder, manifest["step"], manifest["attempt"], manifest["eval_loss"], manifest["time"])


def _write(tensors: Iterator[Named], folder: Path) -> None:
    """In files of bounded size, so that memory holds only a part of them at a time."""
    pending: dict[str, dict[str, torch.Tensor]] = {_WEIGHTS: {}, "optimizer": {}}
    sizes = dict.fromkeys(pending, 0)
    numbers = dict.fromkeys(pending, 0)

    def flush(group: str) -> None:
        if pending[group]:
            numbers[group] += 1
            path = folder / f"{group}-{numbers[group]:05d}.safetensors"
            try:
                save_file(pending[group], path)
            except SafetensorError as error:  # it hides the errno in its text
                raise OSError(
                    errno.ENOSPC if "os error 28" in str(error) else errno.EIO, str(error), str(path)
                ) from error
            pending[group], sizes[group] = {}, 0

    for kind, name, tensor in tensors:
        group = _WEIGHTS if kind == _WEIGHTS else "optimizer"
        pending[group][f"{kind}/{name}"] = tensor.contiguous()
        sizes[group] += tensor.nbytes
        if sizes[group] >= _FILE_BYTES:
            flush(group)
    for group in pending:
        flush(group)
