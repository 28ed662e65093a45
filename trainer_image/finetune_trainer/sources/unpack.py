"""Unpacks tar archives from registries and web servers: plain files only, inside the folder, within the room there is."""

from __future__ import annotations

import contextlib
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from finetune_trainer.errors import BadInput
from finetune_trainer.sources import names
from finetune_trainer.sources.refusals import Place
from finetune_trainer.sources.remote import Wanted
from finetune_trainer.sources.room import Room

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def is_archive(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def unpack(archive: Path, folder: Path, wanted: Wanted, place: Place, room: Room) -> list[str]:
    """Write the members that are wanted below `folder`; gives the names of all. Raises BadInput.

    Most archives hold one folder, whose name does not count: a member may match with it or without.
    """
    found: list[str] = []
    skipped = 0
    try:
        with _opened(archive) as tar:
            for member in tar:
                name = member.name.removeprefix("./").rstrip("/")
                if member.isdir():
                    if name not in ("", "."):
                        names.check(name, place)
                    continue
                names.check(name, place)
                if not member.isreg():
                    kind = f"a link to {names.shown(member.linkname)}" if member.linkname else "no plain file"
                    raise BadInput(
                        f"{place} holds {names.shown(name)}, which is {kind}: only plain files are unpacked",
                        code="InvalidData",
                        remedy="pack the files themselves, for example with tar --dereference",
                    )
                found.append(name)
                if len(found) > names.MOST_FILES:
                    names.check_all(found, place)
                fits = wanted.matches(name) or wanted.matches(name.partition("/")[2] or name)
                # What is skipped counts too: a small archive may be endless when it is unpacked.
                skipped += 0 if fits else member.size
                room.check(skipped + (member.size if fits else 0))
                if fits:
                    _write(tar, member, folder / name, room)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            if isinstance(error, (FileExistsError, NotADirectoryError, IsADirectoryError)):
                names.check_all(found, place)
            raise
        raise BadInput(f"{place} is not a whole tar archive: {names.shown(str(error))}", code="InvalidData") from error
    return found


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path, room: Room) -> None:
    content = tar.extractfile(member)
    assert content is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        while piece := content.read(1 << 20):
            room.take(len(piece))
            file.write(piece)


@contextlib.contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile]:
    with archive.open("rb") as raw:
        magic = raw.read(4)
        raw.seek(0)
        if magic == b"\x28\xb5\x2f\xfd":
            import zstandard

            with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(raw) as plain:
                try:
                    with tarfile.open(fileobj=cast(BinaryIO, plain), mode="r|") as tar:
                        yield tar
                except zstandard.ZstdError as error:
                    raise tarfile.ReadError(str(error)) from None
            return
        with tarfile.open(fileobj=raw, mode="r|*") as tar:
            yield tar
