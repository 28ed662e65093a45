"""Checkpoints, format 2: fragments of named tensors that belong to no engine, sealed, resumable at any world size and strategy.

    step-N/rank-RRRRR-*.safetensors   what rank R owns: flat ranges of tensors, fp32, by KIND/NAME; kind is "weights" (trainable ones),
                                      "ema" (their moving average, if the run keeps one), or a state of the optimizer, such as exp_avg
    step-N/index.json                 KIND/NAME -> shape, dtype, fragments [file, first element, elements, first byte in the file]
    step-N/state.json                 step, counts, positions of schedule, data and randomness
    step-N/manifest.json              format, files with sizes and hashes, world size, config hash, attempt, step, eval_loss, metric, value

Index and state are files of their own, for every manifest is read whenever the store is looked at. Every rank writes its part
into a hidden folder that rank 0 created; rank-RRRRR.json is the last of it, and rank 0 seals when all are there.
In format 1, which is still read, rank 0 wrote whole tensors, and there is no index.

Randomness (dropout) is a function of seed, step and rank, and the data position one of the step: both need no more state
than the step. Nothing here imports torch before a tensor is read: the process that writes must start fast.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_api.evaluation import LOWER_IS_BETTER, Metric
from finetune_api.status import CheckpointStatus

from finetune_trainer import sealed
from finetune_trainer.errors import StageError
from finetune_trainer.train.fence import Fence, refuse_superseded
from finetune_trainer.train.tensor_files import read_header, write_file

if TYPE_CHECKING:
    import torch

KIND = "checkpoint"
FORMAT = 2
_READ = (1, FORMAT)
STATE, INDEX = "state.json", "index.json"
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


@dataclass(frozen=True, slots=True)
class Target:
    """Where all ranks write a checkpoint that is not sealed yet, and the fence that lets `attempt` do so."""

    folder: Path
    fence: Path
    attempt: int


class CheckpointStore:
    """The folder of a run's checkpoints. Sealing and deleting is for rank 0, which holds the fence.

    It takes away what earlier attempts left unfinished. Checkpoints are written with `config_hash`; those with a hash in
    `resumable` count as well.
    """

    def __init__(
        self,
        folder: Path,
        fence: Fence,
        config_hash: str,
        *,
        keep: int,
        resumable: Collection[str] = (),
    ) -> None:
        self.fence = fence
        self.folder = folder
        self.config_hash = config_hash
        self.resumable = {config_hash, *resumable}
        self.keep = keep
        for leftover in folder.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def sealed(self) -> list[Checkpoint]:
        """Those that count, oldest first. Their content is not verified."""
        found = []
        for folder, manifest in sealed_folders(self.folder):
            if (
                manifest.get("kind") == KIND
                and manifest.get("format") in _READ
                and manifest.get("config_hash") in self.resumable
                and self.fence.counts(folder.name, manifest["attempt"])
            ):
                found.append(checkpoint_in(folder, manifest))
        return sorted(found, key=lambda one: one.step)

    def newest(self) -> Checkpoint | None:
        return max(self.sealed(), key=lambda one: one.step, default=None)

    def best(self) -> Checkpoint | None:
        """The one with the best value of its metric (the earliest of equals), or the newest if none was validated."""
        all_of_them = self.sealed()
        measured = [one for one in all_of_them if one.value is not None]
        if measured:
            return min(measured, key=lambda one: (one.value if one.metric in LOWER_IS_BETTER else -one.value, one.step))
        return all_of_them[-1] if all_of_them else None

    def begin(self, step: int) -> Target:
        """Create the folder that all ranks write into. No other attempt knows its name, not even one that saves the same step."""
        folder = self.folder / f".step-{step}.{uuid.uuid4().hex}"
        folder.mkdir(parents=True)
        return Target(folder, self.fence.path, self.fence.attempt)

    def seal(self, target: Target, state: dict[str, Any], manifest: dict[str, Any]) -> Checkpoint:
        """Seal what all ranks have written, and then let older ones go. `manifest` must hold step, eval_loss, world_size, and metric and value where it is not the loss that chooses.

        Raises OSError when the storage is full or gone; the checkpoints before are untouched then.
        """
        manifest = {
            "kind": KIND,
            "format": FORMAT,
            "config_hash": self.config_hash,
            "attempt": self.fence.attempt,
            "time": time.time(),
            **manifest,
        }
        index, files = _merge(target.folder, manifest["world_size"])
        sealed.write_json(target.folder / INDEX, index, indent=None)
        sealed.write_json(target.folder / STATE, state)
        sealed.seal(target.folder, manifest, known=files)
        self.fence.check()  # as late as can be
        final = self.folder / f"step-{manifest['step']}"
        sealed.replace_folder(target.folder, final)
        self._prune()
        return checkpoint_in(final, manifest)

    def _prune(self) -> None:
        all_of_them = self.sealed()
        best = self.best()
        kept = {one.folder for one in all_of_them[-self.keep :]} | ({best.folder} if best else set())
        for one in all_of_them:
            if one.folder not in kept:
                self.delete(one)

    def delete(self, one: Checkpoint) -> None:
        """At once or, after a crash, at the next start: never a part of it."""
        hidden = self.folder / f".{one.folder.name}.{uuid.uuid4().hex}"
        one.folder.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


class CheckpointReader:
    """Ranges of the tensors of a sealed checkpoint, by kind and name. Only what is asked for is read: `bytes_read` counts it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._index = _index_of(folder)
        self._measured = _AVERAGE if any(kind == _AVERAGE for kind, _, _ in self._named()) else _WEIGHTS
        self._files: dict[str, FileIO] = {}
        self.bytes_read = 0

    def __call__(self, kind: str, name: str, start: int = 0, length: int | None = None) -> torch.Tensor:
        """`length` elements from `start` of the flattened tensor, or all that follow, in fp32."""
        import torch

        one = self._index.get(f"{kind}/{name}")
        if one is None:
            raise StageError(
                f"checkpoint {self._folder.name} holds no {kind}/{name}: it was written by another version"
            )
        end = math.prod(one["shape"]) if length is None else start + length
        found = torch.empty(end - start)
        view, filled = memoryview(found.numpy()), 0
        for file, first, count, position in one["fragments"]:
            low, high = max(start, first), min(end, first + count)
            if low < high:
                self._read(file, view[low - start : high - start].cast("B"), position + 4 * (low - first))
                filled += high - low
        if filled != end - start:
            raise StageError(f"checkpoint {self._folder.name} holds only a part of {kind}/{name}")
        return found

    def measured(self, name: str, start: int = 0, length: int | None = None) -> torch.Tensor:
        """What of a trained weight is measured and published: its moving average if the run keeps one."""
        return self(self._measured, name, start, length)

    def weights(self) -> Mapping[str, torch.Tensor]:
        """`measured` by name, whole; each is read when it is asked for, and not kept."""
        return _Weights(self, {name: one["shape"] for kind, name, one in self._named() if kind == self._measured})

    def _named(self) -> Iterator[tuple[str, str, Any]]:
        for key, one in self._index.items():
            kind, _, name = key.partition("/")
            yield kind, name, one

    def _read(self, name: str, into: memoryview, position: int) -> None:
        if name not in self._files:
            self._files[name] = (self._folder / name).open("rb", buffering=0)
        while into.nbytes:  # the system gives at most 2 GiB at once
            count = os.preadv(self._files[name].fileno(), [into], position)
            if not count:
                raise StageError(f"checkpoint {self._folder.name}: {name} is shorter than when it was verified")
            self.bytes_read += count
            into, position = into[count:], position + count


class _Weights(Mapping[str, "torch.Tensor"]):
    def __init__(self, reader: CheckpointReader, shapes: dict[str, list[int]]) -> None:
        self._reader, self._shapes = reader, shapes

    def __getitem__(self, name: str) -> torch.Tensor:
        shape = self._shapes[name]
        return self._reader.measured(name).view(shape)

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def _index_of(folder: Path) -> dict[str, Any]:
    if (folder / INDEX).exists():
        return json.loads((folder / INDEX).read_bytes())
    return {
        key: {"shape": shape, "fragments": [[path.name, 0, math.prod(shape), position]]}
        for path in sorted(folder.glob("*.safetensors"))
        for key, (shape, position) in read_header(path).items()
    }


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


Flat = tuple[str, str, tuple[int, ...], int, memoryview]
"""(kind, name, shape of the tensor, first element of this fragment in the flattened tensor, its fp32 numbers)"""


def write_part(target: Target, rank: int, fragments: Iterable[Flat]) -> None:
    """Write what `rank` owns to files of bounded size, as it comes, so that memory holds only a part of it at a time.

    Raises OSError when the storage is full or gone, PeerLost when a newer attempt has taken over.
    """
    files: dict[str, Any] = {}
    tensors: dict[str, Any] = {}
    pending: list[tuple[str, int, memoryview]] = []

    def flush() -> None:
        name = f"{_part(rank)}-{len(files) + 1:05d}.safetensors"
        files[name], positions = write_file(target.folder / name, [(key, data) for key, _, data in pending])
        for (key, first, data), position in zip(pending, positions, strict=True):
            tensors[key]["fragments"].append([name, first, data.nbytes // 4, position])
        pending.clear()

    refuse_superseded(target.fence, target.attempt)
    try:
        for kind, name, shape, first, data in fragments:
            tensors.setdefault(f"{kind}/{name}", {"shape": shape, "dtype": "F32", "fragments": []})
            if data.nbytes:
                pending.append((f"{kind}/{name}", first, data))
            if sum(data.nbytes for _, _, data in pending) >= _FILE_BYTES:
                flush()
        if pending:
            flush()
        sealed.write_json(target.folder / f"{_part(rank)}.json", {"files": files, "tensors": tensors}, indent=None)
    except OSError:
        refuse_superseded(target.fence, target.attempt)  # which takes the folder away
        raise


def parts_missing(target: Target, ranks: int) -> bool:
    """Whether a rank has not written its part yet."""
    return not all((target.folder / f"{_part(rank)}.json").exists() for rank in range(ranks))


def _part(rank: int) -> str:
    return f"rank-{rank:05d}"


def _merge(folder: Path, ranks: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The index of all ranks' tensors, and the digests of their files. Raises StageError when a tensor is not there in full."""
    index: dict[str, Any] = {}
    files: dict[str, Any] = {}
    for rank in range(ranks):
        path = folder / f"{_part(rank)}.json"
        part = json.loads(path.read_bytes())
        files |= part["files"]
        for key, one in part["tensors"].items():
            index.setdefault(key, {**one, "fragments": []})["fragments"] += one["fragments"]
        path.unlink()
    for key, one in index.items():
        end = 0
        for _, first, count, _ in sorted(one["fragments"], key=lambda fragment: fragment[1]):
            end = end + count if first == end else -1
        if end != math.prod(one["shape"]):
            raise StageError(f"the ranks' fragments of {key} do not make up the whole tensor: it cannot be saved")
    return index, files
