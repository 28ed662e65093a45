"""pvc:// and file://: what lies on a claim, or on this machine in local runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from finetune_api.contract import RunConfig
from finetune_api.location import Location, ParsedLocation

from finetune_trainer.errors import BadInput


def check_inside(path: Path, parsed: ParsedLocation, config: RunConfig, where: str) -> None:
    """Raises BadInput where `path`, or a link below it, leads out of its claim. `where`: field and URI, for the message."""
    if parsed.scheme != "pvc":
        return
    top = (Path(config.claims_root) / parsed.claim).resolve()
    for link in _links(path):
        target = link.resolve()
        if target != top and top not in target.parents:
            inside = "" if link == path else f" holds {link.relative_to(path)}, which"
            raise BadInput(
                f"{where}{inside} is a link that leads out of claim {parsed.claim}",
                code="NotFound",
                remedy="copy the files themselves to the claim",
            )


def _links(path: Path) -> Iterator[Path]:
    yield path  # a link may stand anywhere on the way to it
    for folder, names, files in os.walk(path):
        for name in (*names, *files):
            if (Path(folder) / name).is_symlink():
                yield Path(folder) / name


def check_readable(path: Path, location: Location, config: RunConfig, field: str) -> Path:
    """`path`, if it is there and may be read. Raises BadInput (NotFound)."""
    try:
        found = path.exists()
    except PermissionError:
        found = False
    if not found:
        raise BadInput(
            f"{field}: {location.uri} does not exist{_nearest(location.parsed, path, config)}", code="NotFound"
        )
    if not os.access(path, os.R_OK | os.X_OK if path.is_dir() else os.R_OK):
        raise BadInput(
            f"{field}: {location.uri} may not be read by user {os.geteuid()}",
            code="NotFound",
            remedy="make the files readable for that user or its group, or set spec.pods.common.securityContext.fsGroup",
        )
    return path


def _nearest(parsed: ParsedLocation, path: Path, config: RunConfig) -> str:
    """What is there instead: the nearest folder that exists, and what it holds."""
    top = Path(config.claims_root) / parsed.claim if parsed.scheme == "pvc" else Path("/")
    folder = path.parent
    try:
        while not folder.is_dir() and folder not in (top, folder.parent):
            folder = folder.parent
        names = sorted(
            entry.name + "/" * entry.is_dir() for entry in folder.iterdir() if not entry.name.startswith(".")
        )
    except OSError:
        return ""
    where = (
        f"pvc://{parsed.claim}/{folder.relative_to(top)}".removesuffix("/.") if parsed.scheme == "pvc" else str(folder)
    )
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"; {where} holds {shown}" if names else f"; {where} is empty"
