"""Folders that are either whole or not there: written under a temporary name, synced, renamed, known by their manifest.

A manifest lists every file with its size and sha256. It is the last file written, and the folder is renamed after that,
so that no reader ever takes half a folder for a whole one; `verify` also finds files that were cut or changed later.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


class Torn(Exception):
    """The folder is not what its manifest says; the message names the first file that differs."""


@contextlib.contextmanager
def sealing(folder: Path, manifest: dict[str, Any]) -> Iterator[Path]:
    """Yield a temporary folder to write into; on a clean exit seal it as `folder`, replacing one that was there.

    `manifest` is written with the files' digests under "files"; it may be filled in while the folder is written.
    An exception leaves nothing behind.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        seal(temporary, manifest)
        replace_folder(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def seal(folder: Path, manifest: dict[str, Any], *, known: Mapping[str, Any] | None = None) -> None:
    """Write the manifest of all files that lie in `folder` now, and sync everything.

    `known` files were synced and hashed by who wrote them: name -> size and sha256.
    """
    files = dict(known or {})
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / MANIFEST and path.relative_to(folder).as_posix() not in files:
            sync(path)
            files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": sha256(path)}
    write_json(folder / MANIFEST, {**manifest, "files": files})
    sync(folder)


def replace_folder(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`. If one is there it is moved aside first, so that a crash leaves the old one, the new one, or both."""
    aside = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    if folder.exists():
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    new.rename(folder)
    sync(folder.parent)
    shutil.rmtree(aside, ignore_errors=True)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest, or None when the folder was never sealed or its manifest cannot be read."""
    try:
        return json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None


def verify(folder: Path, *, content: bool = True, rank: int = 0, ranks: int = 1) -> dict[str, Any]:
    """The manifest of a folder whose files are all as listed. Raises Torn. `content=False` compares sizes only.

    Of several `ranks`, each verifies its part of the files: about as many bytes as the others, and no file twice.
    """
    manifest = read_manifest(folder)
    if manifest is None or not isinstance(manifest.get("files"), dict):
        raise Torn(f"{folder} has no readable {MANIFEST}")
    largest_first = sorted(manifest["files"].items(), key=lambda item: (-item[1]["size"], item[0]))
    for name, expected in largest_first[rank::ranks]:
        path = folder / name
        if not path.is_file():
            raise Torn(f"{path} is missing")
        if path.stat().st_size != expected["size"]:
            raise Torn(f"{path} has {path.stat().st_size} bytes instead of {expected['size']}")
        if content and sha256(path) != expected["sha256"]:
            raise Torn(f"{path} was changed after it was sealed")
    return manifest


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any, *, indent: int | None = 1) -> None:
    """Write JSON whole or not at all."""
    write_text(path, json.dumps(value, indent=indent, sort_keys=True))


def write_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
