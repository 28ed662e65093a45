"""The base model is trained once on this machine, not once for every new cluster and namespace.

A local cluster's claims are folders here: what was made in one is kept, and lent to the next. Whoever finds it in a claim
compares it with its checksums and its recipe, and makes it anew if need be (finetune_trainer.quickstart).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from localcluster.paths import cache_root

KEPT = cache_root().parent / "quickstart"
PARTS = ("base", "data")


def lend(claim: Path) -> None:
    for part in PARTS:
        if (KEPT / part).exists() and not (claim / part).exists():
            _copy(KEPT / part, claim / part)


def keep(claim: Path) -> None:
    for part in PARTS:
        if _manifest(claim / part) != _manifest(KEPT / part):
            _copy(claim / part, KEPT / part)


def _manifest(folder: Path) -> bytes | None:
    path = folder / "manifest.json"
    return path.read_bytes() if path.exists() else None


def _copy(source: Path, target: Path) -> None:
    """With owners, since the pod that may have to replace it is not root. Half a copy never has the target's name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    subprocess.run(["cp", "-a", source, partial], check=True)
    if target.exists():
        shutil.rmtree(target)
    partial.rename(target)
