"""Names from a server become paths on the volume: only those that stay inside the download folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from finetune_trainer.errors import BadInput
from finetune_trainer.sources.refusals import Place

MOST_FILES = 100_000


def check(name: str, place: Place) -> str:
    """`name` if it is a plain relative path. Raises BadInput for one that climbs out or that no file can have."""
    parts = name.split("/")
    if not name or any(part in ("", ".", "..") for part in parts) or "\0" in name:
        raise BadInput(
            f"{place} holds {shown(name)}, a name that leads out of the download folder",
            code="InvalidData",
            remedy="rename it, or remove it there",
        )
    if any(len(part.encode("utf-8", "surrogateescape")) > 250 for part in parts) or len(name) > 3000:
        raise BadInput(f"{place} holds {shown(name)}, a name too long for a file", code="InvalidData")
    return name


def check_all(names: Sequence[str], place: Place) -> None:
    """Raises BadInput where two names cannot both be files, or where there are too many."""
    if len(names) > MOST_FILES:
        raise BadInput(
            f"{place} holds {len(names)} files, more than {MOST_FILES}",
            code="InvalidData",
            remedy="pack rows into fewer files",
        )
    known = set(names)
    for name in names:
        parts = check(name, place).split("/")
        above = next(("/".join(parts[:n]) for n in range(1, len(parts)) if "/".join(parts[:n]) in known), None)
        if above is not None or len(known) != len(names):
            raise BadInput(f"{place} holds {shown(above or name)} twice, so it cannot be a file", code="InvalidData")


def nothing_fits(place: Place, names: Iterable[str], files: Sequence[str]) -> BadInput:
    """There is something, but nothing of what is wanted."""
    some = sorted(names)
    there = f"; it holds {', '.join(map(shown, some[:6]))}{', ...' if len(some) > 6 else ''}" if some else ""
    return BadInput(
        f"{place} holds no file that can be used ({', '.join(files[:12])}{' ...' if len(files) > 12 else ''}){there}",
        code="NotFound",
    )


def shown(name: str) -> str:
    """A foreign name on one line."""
    return "".join(letter if letter.isprintable() else "?" for letter in name[:120])
