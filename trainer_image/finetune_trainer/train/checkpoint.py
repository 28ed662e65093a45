"""Checkpoints, format 1: named tensors that belong to no engine, sealed, resumable at any world size and strategy.

    step-N/weights-*.safetensors      trainable weights by name, fp32
    step-N/ema-*.safetensors          their moving average, if the run keeps one
    step-N/optimizer-*.safetensors    STATE/NAME for each state of each parameter, such as exp_avg/NAME, fp32
    step-N/state.json                 step, counts, positions of schedule, data and randomness
    step-N/manifest.json              format, files with sizes and hashes, world size, config hash, attempt, step, eval_loss, metric, value

Randomness (dropout) is a function of seed, step and rank, and the data position one of the step: both need no more state
than the step. Nothing here imports torch before a tensor is read: the process that writes must start fast.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_api.evaluation import LOWER_IS_BETTER, Metric
from finetune_api.status import CheckpointStatus
from safetensors import safe_open

from finetune_trainer import sealed
from finetune_trainer.errors import StageError
from finetune_trainer.train.fence import Fence
from finetune_trainer.train.tensor_files import Stored, write_file

if TYPE_CHECKING:
    import torch

    from finetune_trainer.train.engines.engine import Named

KIND = "checkpoint"
FORMAT = 1
STATE = "state.json"
_FILE_BYTES = 2 << 30
_WEIGHTS, _AVERAGE = "weights", "ema"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A sealed one. `eval_loss` is None where validation did not run at its step; `value` is that of `metric`, which chooses the best."""

    folder: Path
    step: int
    attempt: int
    eval_loss: float | None
    metric: Metric
    value: float | None
    time: float
    seconds: float | None = None
    """How long it took to write and seal; known only to the process that did."""

    def state(self) -> dict[str, Any]:
        """Content of its state.json."""
        return json.loads((self.folder / STATE).read_bytes())

    def status(self) -> CheckpointStatus:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.time))
        return CheckpointStatus(step=self.step, path=str(self.folder), time=stamp, eval_loss=self.eval_loss)


class CheckpointStore:
    """The folder of a run's checkpoints. Writing and deleting is for rank 0, which holds the fence, and its writer.

    `starts` is True for the first to open it in an attempt, which takes away what earlier ones left unfinished. Checkpoints are
    written with `config_hash`; those with a hash in `resumable` count as well.
    """

    def __init__(
        self,
        folder: Path,
        fence: Fence,
        config_hash: str,
        *,
        keep: int,
        starts: bool = True,
        resumable: Collection[str] = (),
    ) -> None:
        self.fence = fence
        self.folder = folder
        self.config_hash = config_hash
        self.resumable = {config_hash, *resumable}
        self.keep = keep
        for leftover in folder.glob(".step-*") if starts else ():
            shutil.rmtree(leftover, ignore_errors=True)

    def sealed(self) -> list[Checkpoint]:
        """Those that count, oldest first. Their content is not verified."""
        found = []
        for folder, manifest in sealed_folders(self.folder):
            if (
                (manifest.get("kind"), manifest.get("format")) == (KIND, FORMAT)
                and manifest.get("config_hash") in self.resumable
                and self.fence.counts(folder.name, manifest["attempt"])
            ):
                found.append(checkpoint_in(folder, manifest))
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
        """The one with the best value of its metric (the earliest of equals), or the newest if none was validated."""
        all_of_them = self.sealed()
        measured = [one for one in all_of_them if one.value is not None]
        if measured:
            return min(measured, key=lambda one: (one.value if one.metric in LOWER_IS_BETTER else -one.value, one.step))
        return all_of_them[-1] if all_of_them else None

    def seal(self, tensors: Iterator[Named], state: dict[str, Any], manifest: dict[str, Any]) -> Checkpoint:
        """Write, seal and then let older ones go. `manifest` must hold step, eval_loss, world_size, and metric and value where it is not the loss that chooses.

        Raises OSError when the storage is full or gone; the checkpoints before are untouched then.
        """
        return self.seal_files(lambda folder: _write(tensors, folder), state, manifest)

    def seal_files(self, write: Callable[[Path], None], state: dict[str, Any], manifest: dict[str, Any]) -> Checkpoint:
        """As `seal`, with files of tensors that `write` puts into the folder it is given."""
        began = time.perf_counter()
        step = manifest["step"]
        manifest = {
            "kind": KIND,
            "format": FORMAT,
            "config_hash": self.config_hash,
            "attempt": self.fence.attempt,
            "time": time.time(),
            **manifest,
        }
        staged = self.folder / f".step-{step}.staged"
        with sealed.sealing(staged, manifest) as folder:
            write(folder)
            sealed.write_json(folder / STATE, state)
        self.fence.check()  # as late as can be: hashing and syncing may have taken minutes
        final = self.folder / f"step-{step}"
        sealed.replace_folder(staged, final)
        seconds = time.perf_counter() - began
        self._prune()
        return replace(checkpoint_in(final, manifest), seconds=seconds)

    def _prune(self) -> None:
        all_of_them = self.sealed()
        best = self.best()
        kept = {one.folder for one in all_of_them[-self.keep :]} | ({best.folder} if best else set())
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
        self._measured = _AVERAGE if any(key.startswith(f"{_AVERAGE}/") for key in self._places) else _WEIGHTS

    def __call__(self, kind: str, name: str) -> torch.Tensor:
        key = f"{kind}/{name}"
        if key not in self._places:
            raise StageError(f"checkpoint {self._folder.name} holds no {key}: it was written by another version")
        with safe_open(self._places[key], framework="pt") as file:
            return file.get_tensor(key)

    def measured(self, name: str) -> torch.Tensor:
        """What of a trained weight is measured and published: its moving average if the run keeps one."""
        return self(self._measured, name)

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All of `measured`, by name."""
        for key in self._places:
            kind, _, name = key.partition("/")
            if kind == self._measured:
                yield name, self.measured(name)


def sealed_folders(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every step folder with a manifest, whoever sealed it."""
    for one in sorted(folder.glob("step-*")):
        manifest = sealed.read_manifest(one)
        if manifest is not None:
            yield one, manifest


def checkpoint_in(folder: Path, manifest: dict[str, Any]) -> Checkpoint:
    return Checkpoint(
        folder=folder,
        step=manifest["step"],
        attempt=manifest["attempt"],
        eval_loss=manifest["eval_loss"],
        metric=manifest.get("metric", "loss"),  # older ones were chosen by loss alone
        value=manifest.get("value", manifest["eval_loss"]),
        time=manifest["time"],
    )


def group_of(kind: str) -> str:
    """Which files tensors of this kind go to."""
    return kind if kind in (_WEIGHTS, _AVERAGE) else "optimizer"


class Files:
    """Writes tensors as they come to files of bounded size, so that memory holds only a part of them at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pending: dict[str, list[Stored]] = {}
        self._numbers: dict[str, int] = {}

    def add(self, kind: str, name: str, shape: tuple[int, ...], data: memoryview) -> None:
        group = group_of(kind)
        pending = self._pending.setdefault(group, [])
        pending.append(Stored(f"{kind}/{name}", shape, data))
        if sum(one.data.nbytes for one in pending) >= _FILE_BYTES:
            self._flush(group)

    def close(self) -> None:
        for group in self._pending:
            self._flush(group)

    def _flush(self, group: str) -> None:
        if self._pending[group]:
            self._numbers[group] = self._numbers.get(group, 0) + 1
            write_file(self._folder / f"{group}-{self._numbers[group]:05d}.safetensors", self._pending[group])
            self._pending[group] = []


def _write(tensors: Iterator[Named], folder: Path) -> None:
    files = Files(folder)
    for kind, name, tensor in tensors:
        whole = tensor.detach().float().cpu().contiguous()
        # A view of what the next step changes would do: it is written before that.
        files.add(kind, name, tuple(whole.shape), memoryview(whole.view(-1).numpy()))
    files.close()
