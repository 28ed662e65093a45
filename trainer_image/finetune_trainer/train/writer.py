"""The process that writes a staged checkpoint and seals it, while training goes on. It imports no torch.

On stdin it gets one JSON object (see `main`), on stdout it answers with one. It dies with the process that started it.
"""

from __future__ import annotations

import ctypes
import json
import math
import mmap
import signal
import sys
from pathlib import Path
from typing import Any

from finetune_trainer.errors import StageError
from finetune_trainer.train.checkpoint import Checkpoint, CheckpointStore, Files
from finetune_trainer.train.fence import Fence

_PR_SET_PDEATHSIG = 1


def main() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGTERM, signal.SIGINT):  # whoever stops the training waits for us
        signal.signal(number, signal.SIG_IGN)
    order = json.load(sys.stdin)
    try:
        checkpoint = seal(order)
        answer: dict[str, Any] = {"sealed": str(checkpoint.folder), "seconds": checkpoint.seconds}
    except OSError as error:
        answer = {"errno": error.errno, "strerror": error.strerror, "filename": error.filename}
    except StageError as error:
        answer = {"exit_code": int(error.exit_code), "cause": error.cause.model_dump(mode="json")}
    json.dump(answer, sys.stdout)


def seal(order: dict[str, Any]) -> Checkpoint:
    """`order`: store (folder, config_hash, resumable, keep), fence (path, attempt, accepted), descriptors, places, state, manifest."""
    fence = order["fence"]
    store = CheckpointStore(
        Path(order["store"]["folder"]),
        Fence(Path(fence["path"]), fence["attempt"], frozenset(fence["accepted"])),
        order["store"]["config_hash"],
        keep=order["store"]["keep"],
        starts=False,
        resumable=order["store"]["resumable"],
    )
    chunks = [memoryview(mmap.mmap(number, 0, access=mmap.ACCESS_READ)) for number in order["descriptors"]]

    def write(folder: Path) -> None:
        files = Files(folder)
        for place in order["places"]:
            begin = place["offset"]
            data = chunks[place["chunk"]][begin : begin + 4 * math.prod(place["shape"])]
            files.add(place["kind"], place["name"], tuple(place["shape"]), data)
        files.close()

    return store.seal_files(write, order["state"], order["manifest"])


if __name__ == "__main__":
    main()
