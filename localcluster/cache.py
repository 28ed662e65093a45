"""Make a folder of the cache once: under a lock, under a temporary name, renamed when it is whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from localcluster.console import say
from localcluster.locks import locked


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Return FOLDER; where it is missing let MAKE fill it. A killed MAKE leaves nothing that is taken for whole."""
    if folder.is_dir():
        return folder
    lock = folder.with_name(f".{folder.name}.lock")
    with locked(lock, waiting=lambda: say(f"Waiting for another process that makes {folder.name}.")):
        if folder.is_dir():
            return folder
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        make(partial)
        partial.replace(folder)
    return folder
