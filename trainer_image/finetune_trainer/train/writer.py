"""The process that writes what a rank has staged of a checkpoint, while training continues. It imports no torch.

On stdin it gets one JSON object (see `saving`), on stdout it answers with one. It dies with the process that started it.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune_trainer.errors import StageError
from finetune_trainer.train.checkpoint import Flat, Target, write_part

_PR_SET_PDEATHSIG = 1


def main() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGTERM, signal.SIGINT):  # whoever stops the training waits for us
        signal.signal(number, signal.SIG_IGN)
    order = json.load(sys.stdin)
    began = time.perf_counter()
    try:
        target = Target(Path(order["folder"]), Path(order["fence"]), order["attempt"])
        write_part(target, order["rank"], _staged(order))
        answer: dict[str, Any] = {"seconds": time.perf_counter() - began}
    except OSError as error:
        answer = {"errno": error.errno, "strerror": error.strerror, "filename": error.filename}
    except StageError as error:
        answer = {"exit_code": int(error.exit_code), "cause": error.cause.model_dump(mode="json")}
    json.dump(answer, sys.stdout)


def _staged(order: dict[str, Any]) -> Iterator[Flat]:
    chunks = [memoryview(mmap.mmap(number, 0, access=mmap.ACCESS_READ)) for number in order["descriptors"]]
    for kind, name, shape, start, count, chunk, begin in order["places"]:
        yield kind, name, shape, start, chunks[chunk][begin : begin + 4 * count]


if __name__ == "__main__":
    main()
