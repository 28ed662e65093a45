"""A file next to the output that names the job which is going to publish there, so that a second job fails before it trains.

Prepare takes the reservation, publish checks it and removes it. Jobs are equal by namespace and name, as in `output`. The
trainer cannot ask whether the holder still exists: the message names the file to delete, and after KEPT_DAYS it counts no more.
"""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Iterable
from pathlib import Path

from finetune_api.contract import JobRef
from pydantic import ValidationError

from finetune_trainer import sealed
from finetune_trainer.errors import BadInput

KEPT_DAYS = 14
"""A job that trains for longer can lose its reservation; publish then finds that, and overwrites nothing."""

_PREFIX = ".finetune-reserved"


def path_of(folder: Path, *, inside: bool) -> Path:
    """`inside`: `folder` is a mount, and nothing can be written next to it."""
    return folder / f"{_PREFIX}.json" if inside else folder.parent / f"{_PREFIX}-{folder.name}.json"


def check(paths: Iterable[Path], job: JobRef, uri: str, root: Path, root_uri: str) -> None:
    """Raise BadInput (OutputTaken) when another job holds one of `paths`, which are below `root`."""
    for path in paths:
        holder = _read(path)
        if holder is None or _same(holder[0], job):
            continue
        other, since = holder
        name = f"{other.namespace}/{other.name}"
        raise BadInput(
            f"spec.output.uri: {uri} is reserved since {since:%Y-%m-%d %H:%M} UTC by job {name}, which has not published yet",
            code="OutputTaken",
            remedy=f"set another spec.output.uri; or, if job {name} is deleted or has failed, delete {root_uri}/{path.relative_to(root)} and run this job again",
        )


def take(path: Path, job: JobRef) -> None:
    """Create the reservation, or replace one that is free. The caller checks it afterwards: of two jobs at once, one loses."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"job": job.wire(), "since": _now().isoformat(timespec="seconds")}
    try:
        with path.open("x", encoding="utf-8") as file:
            json.dump(content, file)
    except FileExistsError:
        holder = _read(path)
        if holder is None or _same(holder[0], job):
            sealed.write_json(path, content)


def release(path: Path, job: JobRef) -> None:
    """Remove the reservation of `job`, and no other's."""
    holder = _read(path)
    if holder is not None and _same(holder[0], job):
        with contextlib.suppress(OSError):
            path.unlink()


def below(folder: Path) -> list[Path]:
    """The reservations that are in `folder`, which would disappear with it."""
    return sorted(folder.glob(f"{_PREFIX}*.json"))


def _read(path: Path) -> tuple[JobRef, datetime.datetime] | None:
    """Holder and time; None when the path is free: no file, an incomplete one, or one that is too old."""
    try:
        content = json.loads(path.read_bytes())
        since = datetime.datetime.fromisoformat(content["since"])
        holder = JobRef.model_validate(content["job"]), since
        return holder if _now() - since < datetime.timedelta(days=KEPT_DAYS) else None
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, ValidationError):
        return None


def _same(one: JobRef, other: JobRef) -> bool:
    return (one.namespace, one.name) == (other.namespace, other.name)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
