"""A folder that is complete or absent: unpacked next to it, checked against its own checksums, renamed."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from finetune_cli.errors import CliError
from finetune_cli.text import bytes_size

SUMS = "SHA256SUMS"
MANIFEST = "finetune.json"
"""Which job published the folder. It names the digest of SHA256SUMS, so it cannot be in there."""


@dataclass(frozen=True)
class Fetched:
    """What came."""

    files: int
    bytes: int
    digest: str


class _Chunks(io.RawIOBase):
    """An iterator of bytes as a file that can be read once."""

    def __init__(self, chunks: Iterator[bytes], seen: Callable[[int], None]) -> None:
        self._chunks, self._seen, self._rest = chunks, seen, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # the stub names a wider type
        if not self._rest:
            self._rest = next(self._chunks, b"")
            self._seen(len(self._rest))
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


def check_target(folder: Path, expected_bytes: int | None) -> None:
    """Refuses a folder that holds something, and a disk that is too small, before anything is sent."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CliError(f"{folder} is already there; name a folder that does not exist yet")
    parent = folder.absolute().parent
    if not parent.is_dir():
        raise CliError(f"{parent}: there is no such folder")
    free = shutil.disk_usage(parent).free
    if expected_bytes and free < expected_bytes:
        raise CliError(f"{parent} has {bytes_size(free)} left, and the artifacts are {bytes_size(expected_bytes)}")


def unpack(chunks: Iterator[bytes], folder: Path, digest: str | None, seen: Callable[[int], None]) -> Fetched:
    """A tar stream as `folder`. `digest` is what the sha256 of SHA256SUMS has to be. On any error nothing is left."""
    target = folder.absolute()
    temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        with tarfile.open(fileobj=io.BufferedReader(_Chunks(chunks, seen), 1 << 20), mode="r|") as archive:
            archive.extractall(temporary, filter="data")
        for _ in chunks:  # to the end, where a failure of the sender would show
            pass
        fetched = verify(temporary, digest)
        temporary.replace(target)  # also over an empty folder
    except tarfile.TarError as error:
        raise CliError(f"the transfer broke off: {error}") from None
    except OSError as error:
        raise CliError(f"{error.filename or target}: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary)
    return fetched


def verify(folder: Path, digest: str | None) -> Fetched:
    """Raises CliError unless exactly the files of SHA256SUMS are there, each as it was published."""
    try:
        sums = (folder / SUMS).read_bytes()
    except FileNotFoundError:
        raise CliError(f"the artifacts have no {SUMS}, so they cannot be verified") from None
    found = hashlib.sha256(sums).hexdigest()
    if digest is not None and digest.removeprefix("sha256:") != found:
        raise CliError(
            f"{SUMS} is not the one that was published: the output was changed, or another job published there"
        )
    listed = {}
    for line in sums.decode().splitlines():
        expected, _, name = line.partition("  ")
        listed[name.removeprefix("./")] = expected
    size = len(sums)
    for name, expected in listed.items():
        path = folder / name
        if not path.is_file():
            raise CliError(f"{name} is listed in {SUMS} but was not among the artifacts")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                raise CliError(f"{name} does not match its checksum in {SUMS}")
        size += path.stat().st_size
    extra = (
        {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        - listed.keys()
        - {SUMS, MANIFEST}
    )
    if extra:
        raise CliError(f"{min(extra)} is among the artifacts but not listed in {SUMS}")
    return Fetched(files=sum(1 for path in folder.rglob("*") if path.is_file()), bytes=size, digest=found)
