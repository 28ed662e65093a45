"""What every scheme can do: say what is there now, and give a file's bytes from any offset on."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from finetune_api.location import Location

from finetune_trainer.data.digests import json_digest
from finetune_trainer.errors import StageError
from finetune_trainer.sources import refusals
from finetune_trainer.sources.refusals import Place


@dataclass(frozen=True, slots=True)
class Wanted:
    """Of `location` the files that match `files` (patterns as in a shell); those of subfolders too, if asked."""

    location: Location
    field: str
    files: tuple[str, ...]
    subfolders: bool = False

    def matches(self, name: str) -> bool:
        """`name` is relative to the location."""
        if "/" in name and not self.subfolders:
            return False
        return any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in self.files)

    def place(self, server: str, values: Mapping[str, str]) -> Place:
        """It on the `server` that is asked for it, with the credentials `values`."""
        location = self.location
        secret = location.secret_ref.name if location.secret_ref else None
        return Place(self.field, location.uri, server, location.parsed.scheme, secret, values)

    def key(self) -> str:
        """The same for all jobs that want the same of the same location, at whatever revision."""
        location = self.location
        endpoint = (location.endpoint or "").rstrip("/")
        return json_digest([location.uri, endpoint, location.region, sorted(self.files), self.subfolders])[:16]


@dataclass(frozen=True, slots=True)
class Entry:
    """A file: `name` below the download folder, `size` in bytes where the server says it, `source` as its scheme finds it.

    `check` is "ALGORITHM:HEX" (sha256, md5, or git: a blob's id) where the server says one. An `archive` is unpacked.
    """

    name: str
    size: int | None
    source: Any = None
    check: str | None = None
    archive: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is there now. `stamp` differs whenever the content does; `digest` names the content, where it is known before.

    `path` is where the location lies in the download folder: a file's name, a folder, or "" for the whole.
    """

    stamp: str
    entries: Sequence[Entry]
    digest: str | None = None
    path: str = ""


class Remote(Protocol):
    """A server with one location on it. Any exception may be raised: `explained` makes a sentence of it."""

    place: Place

    def look(self) -> Snapshot:
        """What is there, without its bytes."""
        ...

    def read(self, entry: Entry, offset: int) -> tuple[int, Iterator[bytes]]:
        """Bytes of a file from `offset` on, and where they really begin: 0 where the server cannot continue."""
        ...

    def intact(self, entry: Entry, digest: str) -> bool:
        """Whether a file whose digest by the algorithm of `entry.check` is not as said is right nevertheless."""
        return False

    def explained(self, error: BaseException) -> StageError:
        """BadInput where trying again is no use."""
        return refusals.explained(error, self.place)

    def close(self) -> None: ...
