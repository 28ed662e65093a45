"""Brings a file's bytes to the disk: goes on where an earlier try, or an earlier pod, was cut off."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from finetune_trainer.errors import BadInput, StageError
from finetune_trainer.sources import refusals
from finetune_trainer.sources.remote import Entry, Remote
from finetune_trainer.sources.room import Room, text

log = logging.getLogger("finetune.sources")

TRIES = 5
"""Tries in a row that bring next to nothing before it is given up."""
PAUSE_S = 1.0
"""Before the second try; doubled before each further one."""
ENOUGH_BYTES = 256 * 1024
"""A try that brings so much has not been in vain."""
SLOWEST = 1024
"""Bytes a second, over SLOW_S seconds, below which a server counts as not answering."""
SLOW_S = 60.0
AT_ONCE = 4
"""Files that are downloaded at the same time."""
TELL_S = 10.0

_Answer = TypeVar("_Answer")


def asked(ask: Callable[[], _Answer], remote: Remote) -> _Answer:
    """The answer to a question to a server, asked again while it does not answer. Raises StageError or BadInput."""
    for attempt in range(TRIES):
        try:
            return ask()
        except Exception as error:
            said = remote.explained(error)
        if isinstance(said, BadInput) or attempt == TRIES - 1:
            break
        time.sleep(PAUSE_S * 2**attempt)
    raise said from None  # what a library raises may hold what nobody should read


def pull_all(entries: Sequence[Entry], target: Callable[[Entry], Path], remote: Remote, room: Room) -> None:
    """Bring every entry to `target(entry)`, some at once. What is there already is not asked for again."""
    progress = _Progress(entries, target, remote.place.uri)
    room.check(sum(entry.size or 0 for entry in entries) - progress.done)
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="download") as pool:
        stop = threading.Event()
        jobs = [pool.submit(_pull, entry, target(entry), remote, room, progress, stop) for entry in entries]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            stop.set()
            for job in jobs:
                job.cancel()
            raise


def _pull(entry: Entry, path: Path, remote: Remote, room: Room, progress: _Progress, stop: threading.Event) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    vain = wrong = 0
    while not stop.is_set():
        before = _size(path)
        try:
            if entry.size is None or before != entry.size or not path.exists():
                _append(entry, path, remote, room, progress, stop)
            if stop.is_set() or _intact(entry, path, remote):
                return
            wrong += 1
            progress.less(_size(path))
            path.unlink()
            said: StageError = refusals.unreachable(
                remote.place, f"{entry.name} arrives with another checksum than the server reported"
            )
        except Exception as error:
            said = remote.explained(error)
        if isinstance(said, BadInput) or wrong == 2:
            raise said from None
        vain = 0 if _size(path) - before >= ENOUGH_BYTES else vain + 1
        if vain >= TRIES:
            raise said from None
        log.info("%s; resuming from byte %d.", said, _size(path))
        stop.wait(PAUSE_S * 2 ** max(0, vain - 1))


def _append(entry: Entry, path: Path, remote: Remote, room: Room, progress: _Progress, stop: threading.Event) -> None:
    """Raises whatever its scheme raises; EOFError where the server ends too early."""
    done = _size(path)
    if entry.size is not None and done > entry.size:
        progress.less(done)
        done = 0
    start, body = remote.read(entry, done)
    progress.less(done - start)
    with path.open("r+b" if path.exists() else "w+b") as file:
        file.truncate(start)
        file.seek(start)
        for piece in _paced(body):
            if stop.is_set():
                return
            room.take(len(piece))
            file.write(piece)
            progress.more(len(piece))
            if entry.size is not None and file.tell() > entry.size:
                raise EOFError(f"{entry.name} is longer than the {entry.size} bytes that the server said")
    if entry.size is not None and _size(path) < entry.size:
        raise EOFError(f"the server ended {entry.name} after {_size(path)} of {entry.size} bytes")


def _paced(body: Iterator[bytes]) -> Iterator[bytes]:
    """Raises TimeoutError where bytes only drip."""
    since, count = time.monotonic(), 0
    for piece in body:
        yield piece
        count += len(piece)
        if (passed := time.monotonic() - since) >= SLOW_S:
            if count < SLOWEST * passed:
                raise TimeoutError(f"only {count} bytes came in {passed:.0f} seconds")
            since, count = time.monotonic(), 0


def _intact(entry: Entry, path: Path, remote: Remote) -> bool:
    if entry.check is None:
        return True
    algorithm, _, expected = entry.check.partition(":")
    found = digest(path, algorithm)
    return found == expected or remote.intact(entry, found)


def digest(path: Path, algorithm: str) -> str:
    """Hex digest of a file; `git` is the id of a blob: sha1 over its length and content."""
    with path.open("rb") as file:
        if algorithm != "git":
            return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
        begun = hashlib.sha1(f"blob {_size(path)}\0".encode(), usedforsecurity=False)
        return hashlib.file_digest(file, lambda: begun).hexdigest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


class _Progress:
    """Says now and then how far a download is."""

    def __init__(self, entries: Sequence[Entry], target: Callable[[Entry], Path], uri: str) -> None:
        self.done = sum(_size(target(entry)) for entry in entries)
        self._total = sum(entry.size or 0 for entry in entries)
        self._uri = uri
        self._told = time.monotonic()
        self._lock = threading.Lock()
        if self.done:
            log.info("Resuming %s from %s.", uri, text(self.done))

    def more(self, count: int) -> None:
        with self._lock:
            self.done += count
            if time.monotonic() - self._told < TELL_S:
                return
            self._told = time.monotonic()
            share = f" of {text(self._total)} ({min(1.0, self.done / self._total):.0%})" if self._total else ""
        log.info("Downloading %s: %s%s.", self._uri, text(self.done), share)

    def less(self, count: int) -> None:
        with self._lock:
            self.done -= count
