"""The output folder: whose it is, who may write it, and how a new one takes its place whole.

`finetune.json` says which job wrote the folder; it is the last file to arrive. A folder is only ever replaced when it is
empty or the same job (namespace and name) wrote it: a job that was deleted and created again may take its own place,
nobody else's files are touched.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune_api.contract import RunConfig

from finetune_trainer import sealed
from finetune_trainer.errors import BadInput, accessing
from finetune_trainer.publish import reservation

MANIFEST = "finetune.json"
_PUBLISHING = ".finetune.publishing.json"  # in the root of a claim: files are being exchanged
_NOT_OURS_BUT_FINE = {"lost+found", ".snapshot"}  # what file systems put into their root


def folder_of(config: RunConfig) -> Path:
    return config.path(config.spec.output)


def check(config: RunConfig) -> None:
    """Raises BadInput when the output could not be published there: OutputTaken, NotFound, StorageFull."""
    with accessing("spec.output.uri", config.spec.output.uri):
        _check(config)
        _check_reserved(config)


def _check(config: RunConfig) -> None:
    folder, uri = folder_of(config), config.spec.output.uri
    root = _root(config)
    if not root.is_dir():
        raise BadInput(f"spec.output.uri: {uri}: {root} is not there", code="NotFound")
    if folder.exists() and not folder.is_dir():
        raise BadInput(
            f"spec.output.uri: {uri} is a file, not a folder", code="OutputTaken", remedy="name another folder"
        )
    names = _names(folder)
    if names and not owned(folder, config):
        raise BadInput(
            f"spec.output.uri: {uri} already holds {_some(names)}, which this job did not write",
            code="OutputTaken",
            remedy="name another folder, or empty this one",
        )
    nearest = folder if _in_place(config) else folder.parent
    while not nearest.is_dir():
        nearest = nearest.parent
    with tempfile.TemporaryDirectory(dir=nearest, prefix=".finetune-probe-"):
        pass


def _check_reserved(config: RunConfig) -> None:
    """Another job's output may also be a folder above this one, or in it: one of the two would disappear."""
    folder, root = folder_of(config), _root(config)
    above = [parent for parent in folder.parents if parent.is_relative_to(root)]
    paths = [
        _reservation(config),
        *(reservation.path_of(parent, inside=parent == root) for parent in above),
        *reservation.below(folder),
    ]
    location = config.spec.output.parsed
    root_uri = f"pvc://{location.claim}" if location.scheme == "pvc" else "file://"
    reservation.check(paths, config.job, config.spec.output.uri, root, root_uri)


def reserve(config: RunConfig) -> None:
    """Keep the output for this job until it has published. Raises BadInput when another job was faster."""
    with accessing("spec.output.uri", config.spec.output.uri):
        reservation.take(_reservation(config), config.job)
    check(config)


def release(config: RunConfig) -> None:
    reservation.release(_reservation(config), config.job)


def _reservation(config: RunConfig) -> Path:
    return reservation.path_of(folder_of(config), inside=_in_place(config))


def owned(folder: Path, config: RunConfig) -> bool:
    """Whether the same job, by namespace and name, wrote this folder (or was about to)."""
    for name in (MANIFEST, _PUBLISHING):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            job = json.loads((folder / name).read_bytes())["job"]
            if (job["namespace"], job["name"]) == (config.job.namespace, config.job.name):
                return True
    return False


def published(config: RunConfig) -> bool:
    """Whether this very run wrote this folder."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        job = json.loads((folder_of(config) / MANIFEST).read_bytes())["job"]
        return bool((job["uid"], job["run"]) == (config.job.uid, config.job.run))
    return False


@contextlib.contextmanager
def replacing(config: RunConfig, manifest: dict[str, Any]) -> Iterator[Path]:
    """Yield a new folder beside the output; on a clean exit it becomes the output, with `manifest` as finetune.json."""
    folder = folder_of(config)
    beside = folder if _in_place(config) else folder.parent
    beside.mkdir(parents=True, exist_ok=True)
    new = beside / f".finetune-{config.job.uid[:8]}-{config.job.run}.tmp"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        yield new
        for path in sorted(new.rglob("*")):
            if path.is_file():
                path.chmod(0o644)
                sealed.sync(path)
        sealed.write_json(new / MANIFEST, manifest)
        check(config)  # a folder that was taken while this job ran is not overwritten
        if _in_place(config):
            _exchange_files(new, folder, {"job": manifest["job"]})
        else:
            new.chmod(0o755)
            sealed.sync(new)
            sealed.replace_folder(new, folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _exchange_files(new: Path, folder: Path, owner: dict[str, Any]) -> None:
    """Where the folder is a mount, which cannot be renamed: a crash on the way leaves no finetune.json, but whose it is."""
    sealed.write_json(folder / _PUBLISHING, owner)
    (folder / MANIFEST).unlink(missing_ok=True)
    for name in _names(folder) - {_PUBLISHING, new.name}:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for name in sorted(_names(new) - {MANIFEST}):
        (new / name).rename(folder / name)
    (new / MANIFEST).rename(folder / MANIFEST)
    sealed.sync(folder)
    (folder / _PUBLISHING).unlink()
    new.rmdir()


def _in_place(config: RunConfig) -> bool:
    return folder_of(config) == _root(config) or folder_of(config).is_mount()


def _root(config: RunConfig) -> Path:
    """The mount that the output lies on."""
    parsed = config.spec.output.parsed
    return Path(config.claims_root) / parsed.claim if parsed.scheme == "pvc" else Path("/")


def _names(folder: Path) -> set[str]:
    try:
        return {
            entry.name
            for entry in folder.iterdir()
            if entry.name not in _NOT_OURS_BUT_FINE and not entry.name.startswith(".finetune-")
        }
    except FileNotFoundError:
        return set()


def _some(names: set[str]) -> str:
    shown = sorted(names)[:3]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
