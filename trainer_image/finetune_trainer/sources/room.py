"""Whether a download fits on the volume: asked before it begins, and while it lasts."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

from finetune_trainer.errors import BadInput
from finetune_trainer.sources.refusals import Place

MARGIN_BYTES = 64 << 20
"""Stays free: others write to the volume too."""
_LOOK_BYTES = 32 << 20


class Room:
    """Room for one download below `folder`, on the workspace `uri`."""

    def __init__(self, folder: Path, uri: str, place: Place) -> None:
        self._folder, self._uri, self._place = folder, uri, place
        self._lock = threading.Lock()
        self._taken = 0

    def check(self, needed: int) -> None:
        """Raises BadInput (StorageFull) where `needed` bytes more do not fit."""
        free = shutil.disk_usage(self._folder).free - MARGIN_BYTES
        if needed > max(0, free):
            raise BadInput(
                f"spec.workspace.uri: {self._uri} has {text(max(0, free))} free for downloads, but {self._place.uri} "
                f"needs {text(needed)} more",
                code="StorageFull",
                remedy="name a larger volume, or delete what is no longer needed on it (its folder cache/ holds downloads)",
            )

    def take(self, count: int) -> None:
        """`count` bytes are about to be written, whatever the server said of their number."""
        with self._lock:
            self._taken += count
            if self._taken < _LOOK_BYTES:
                return
            self._taken = 0
        self.check(1)


def text(count: int) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
