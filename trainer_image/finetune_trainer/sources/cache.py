"""Downloads on the work volume, sealed, and shared by all jobs that name the same location while it has the same content.

    <workspace>/cache/<location>/<stamp>/manifest.json   sizes and sha256 of all files: the download is whole
    <workspace>/cache/<location>/<stamp>/files/          what was downloaded
    <workspace>/cache/<location>/.<stamp>.partial/       so far; the next try goes on from it
    <workspace>/cache/<location>/.<stamp>.lock           held by who downloads

One job downloads, others wait for it. Where the volume knows no locks each job downloads for itself, and the first that is
ready wins by a rename. Whoever dies leaves a part that anybody may go on from.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from finetune_trainer import sealed
from finetune_trainer.data.digests import json_digest
from finetune_trainer.errors import StageError
from finetune_trainer.sources import names, transfer, unpack
from finetune_trainer.sources.remote import Entry, Remote, Snapshot, Wanted
from finetune_trainer.sources.room import Room

log = logging.getLogger("finetune.sources")

FOLDER = "cache"
FILES = "files"
_ARCHIVES = "archives"
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
_WAIT_S = 0.5


class Changed(Exception):
    """What was downloaded is not what lies there now: it is a mixture, and was thrown away."""


class Cache:
    """The downloads below `workspace`, which the user knows as `uri`. `run` names the run where jobs cannot share."""

    def __init__(self, workspace: Path, uri: str, run: str) -> None:
        self.root = workspace / FOLDER
        self._uri, self._run = uri, run

    def find(self, wanted: Wanted, digest: str) -> Path | None:
        """A whole download of this content."""
        for manifest in sorted((self.root / _name(wanted)).glob(f"*/{sealed.MANIFEST}")):
            folder = manifest.parent
            if not folder.name.startswith(".") and whole(folder) and digest_of(folder) == digest:
                return folder
        return None

    def take(self, wanted: Wanted, snapshot: Snapshot, remote: Remote) -> Path:
        """The folder with what `snapshot` tells of, downloaded unless it is there. Raises StageError, Changed."""
        names.check_all([entry.name for entry in snapshot.entries], remote.place)
        folder = self.root / _name(wanted) / json_digest([snapshot.stamp])[:16]
        if whole(folder):
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _held(folder.with_name(f".{folder.name}.lock"), wanted.location.uri) as alone:
            if not whole(folder):
                suffix = "partial" if alone else f"partial-{self._run}"
                partial = folder.with_name(f".{folder.name}.{suffix}")
                partial.mkdir(exist_ok=True)
                self._download(wanted, snapshot, remote, partial)
                _settle(partial, folder)
        return folder

    def _download(self, wanted: Wanted, snapshot: Snapshot, remote: Remote, partial: Path) -> None:
        room = Room(partial, self._uri, remote.place)

        def target(entry: Entry) -> Path:
            return partial / (_ARCHIVES if entry.archive else FILES) / entry.name

        try:
            transfer.pull_all(snapshot.entries, target, remote, room)
        except StageError:
            if _changed(snapshot, remote):
                shutil.rmtree(partial)
                raise Changed from None
            raise
        if _changed(snapshot, remote):
            shutil.rmtree(partial)
            raise Changed
        archives = [entry for entry in snapshot.entries if entry.archive]
        digest, path = snapshot.digest, snapshot.path
        if archives:
            digest = digest or f"sha256:{sealed.sha256(target(archives[0]))}"
            seen = [name for entry in archives for name in self._unpack(target(entry), partial, wanted, remote, room)]
            if not any((partial / FILES).iterdir()):
                raise names.nothing_fits(remote.place, seen, wanted.files)
            path = _only_folder(partial / FILES)
            shutil.rmtree(partial / _ARCHIVES, ignore_errors=True)
        manifest = {"kind": "download", "uri": wanted.location.uri, "stamp": snapshot.stamp, "path": path}
        sealed.seal(partial, manifest | ({"digest": digest} if digest else {}))

    def _unpack(self, archive: Path, partial: Path, wanted: Wanted, remote: Remote, room: Room) -> list[str]:
        (partial / FILES).mkdir(exist_ok=True)
        return unpack.unpack(archive, partial / FILES, wanted, remote.place, room)


def _changed(snapshot: Snapshot, remote: Remote) -> bool:
    """Whether the server has something else now. What has a name for its content never changes."""
    if snapshot.digest is not None:
        return False
    try:
        return remote.look().stamp != snapshot.stamp
    except Exception:  # nobody can say: what was wrong before is what counts
        return False


def whole(folder: Path) -> bool:
    """Whether a download is there with all its bytes. Its content was hashed when it was sealed."""
    try:
        sealed.verify(folder, content=False)
    except sealed.Torn:
        return False
    return True


def path_in(folder: Path) -> str:
    """Where the location lies below FILES: a file, a folder, or "" for the whole."""
    return str((sealed.read_manifest(folder) or {}).get("path", ""))


def _only_folder(files: Path) -> str:
    inside = list(files.iterdir())
    return inside[0].name if len(inside) == 1 and inside[0].is_dir() else ""


def digest_of(folder: Path) -> str:
    """The digest of a whole download: what its server calls it, else sha256 of its file, or of the list of its files.

    The list is that of `sha256sum`, a line "HEX  NAME" for each file, by name.
    """
    manifest = sealed.read_manifest(folder) or {}
    if said := manifest.get("digest"):
        return str(said)
    files = {name.removeprefix(f"{FILES}/"): entry["sha256"] for name, entry in manifest.get("files", {}).items()}
    if (single := files.get(path_in(folder))) is not None:
        return f"sha256:{single}"
    listing = "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items()))
    return f"sha256:{hashlib.sha256(listing.encode()).hexdigest()}"


def _name(wanted: Wanted) -> str:
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", wanted.location.uri.split("://", 1)[-1]).strip("-.")[-40:].strip("-.")
    return f"{wanted.location.parsed.scheme}-{readable}-{wanted.key()}"


def _settle(partial: Path, folder: Path) -> None:
    """Rename, unless another job was first, where there are no locks: its folder may be read already."""
    if folder.exists() and not whole(folder):
        sealed.replace_folder(partial, folder)
        return
    try:
        partial.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        shutil.rmtree(partial, ignore_errors=True)
    sealed.sync(folder.parent)


@contextlib.contextmanager
def _held(lock: Path, uri: str) -> Iterator[bool]:
    """Wait until nobody else downloads it. False: the volume knows no locks."""
    descriptor = os.open(lock, os.O_CREAT | os.O_RDWR, 0o666)
    try:
        waited = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not waited:
                    log.info("Another job downloads %s to the same workspace: waiting for it.", uri)
                waited = True
                time.sleep(_WAIT_S)
                continue
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                yield False
                return
            yield True
            return
    finally:
        os.close(descriptor)
