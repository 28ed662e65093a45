"""What s3:// and gs:// have in common: an object, or all objects below a prefix, through a file system of fsspec."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from finetune_trainer.data.digests import json_digest
from finetune_trainer.errors import StageError
from finetune_trainer.sources import names, refusals
from finetune_trainer.sources.remote import Entry, Remote, Snapshot, Wanted

PIECE_BYTES = 8 << 20
AHEAD = 4
"""Pieces of one object that are asked for at the same time."""
PIECE_S = 120.0
"""Seconds until a piece must be there."""


class Objects(Remote):
    """Over `files`, an asynchronous fsspec file system with no cache of its own."""

    def __init__(self, wanted: Wanted, values: Mapping[str, str], files: Any, server: str) -> None:
        location = wanted.location
        self._wanted, self._files = wanted, files
        self._bucket, self._key = location.parsed.host, location.parsed.path
        self.place = wanted.place(server, values)
        self._readers = ThreadPoolExecutor(4 * AHEAD, thread_name_prefix="ranges")

    def look(self) -> Snapshot:
        path = f"{self._bucket}/{self._key}"
        info = self._ask(self._files._info, path)
        single = info["type"] == "file" and not self._wanted.location.uri.endswith("/")
        found = {path: info} if single else self._ask(self._files._find, path, detail=True)
        base = self._key.rpartition("/")[0] + "/" if single else f"{self._key}/"
        objects = {
            name.removeprefix(f"{self._bucket}/").removeprefix(base): details
            for name, details in found.items()
            if details["type"] == "file" and not name.endswith("/")
        }
        chosen = {name: details for name, details in objects.items() if single or self._wanted.matches(name)}
        if not chosen:
            raise names.nothing_fits(self.place, objects, self._wanted.files)
        entries = [
            Entry(name, int(details["size"]), details["name"], self.check_of(details))
            for name, details in sorted(chosen.items())
        ]
        stamps = [[entry.name, entry.size, self.stamp_of(chosen[entry.name])] for entry in entries]
        return Snapshot(json_digest(stamps), entries, path=entries[0].name if single else "")

    def read(self, entry: Entry, offset: int) -> tuple[int, Iterator[bytes]]:
        return offset, self._ranges(entry, offset)

    def _ranges(self, entry: Entry, offset: int) -> Iterator[bytes]:
        waiting: deque[Future[bytes]] = deque()
        size = entry.size or 0
        try:
            while waiting or offset < size:
                while offset < size and len(waiting) < AHEAD:
                    end = min(offset + PIECE_BYTES, size)
                    waiting.append(self._readers.submit(self._piece, entry.source, offset, end))
                    offset = end
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def _piece(self, path: str, start: int, end: int) -> bytes:
        piece: bytes = self._ask(self._files._cat_file, path, start=start, end=end)
        if len(piece) != end - start:
            raise EOFError(f"the server gave {len(piece)} of {end - start} bytes")
        return piece

    def _ask(self, function: Any, *arguments: Any, **keywords: Any) -> Any:
        from fsspec.asyn import sync

        return sync(self._files.loop, function, *arguments, timeout=PIECE_S, **keywords)

    def check_of(self, details: Mapping[str, Any]) -> str | None:
        """`Entry.check` of an object, from what the server tells of it."""
        raise NotImplementedError

    def stamp_of(self, details: Mapping[str, Any]) -> Any:
        """What differs whenever the object's content does."""
        raise NotImplementedError

    def explained(self, error: BaseException) -> StageError:
        if (isinstance(error, FileNotFoundError) and error.errno is None) or refusals.status_of(error) in (404, 410):
            bucket = next((c for c in refusals.causes(error) if re.search(r"(?i)bucket.*does not exist", str(c))), None)
            what = f"there is no bucket {self._bucket}" if bucket else f"bucket {self._bucket} has no such key"
            return refusals.absent(self.place, f"{what} on {self.place.server}")
        if isinstance(error, PermissionError) and error.errno in (None, 13):
            return refusals.no_access(self.place)
        return refusals.explained(error, self.place)

    def close(self) -> None:
        self._readers.shutdown(wait=False, cancel_futures=True)
