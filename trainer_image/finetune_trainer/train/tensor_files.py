"""Files of named fp32 tensors in the safetensors format, written straight from memory: no copies, and true error numbers."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_ALIGNMENT = 8
assert sys.byteorder == "little", "the format is little-endian, and so must be what is written as it is in memory"


def write_file(path: Path, tensors: Sequence[tuple[str, memoryview]]) -> tuple[dict[str, Any], list[int]]:
    """Write and sync flat fp32 `tensors` (key, numbers). Returns size and sha256 of the file, and where each tensor begins in it.

    The hash is of what was in memory, so that a file that the storage spoilt is found when it is verified. Raises OSError.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begins, end = [], 0
    for key, data in tensors:
        begins.append(end)
        end += data.nbytes
        header[key] = {"dtype": "F32", "shape": [data.nbytes // 4], "data_offsets": [begins[-1], end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    start, digest = 8 + len(encoded), hashlib.sha256()
    try:
        with path.open("xb", buffering=0) as file:
            for data in (memoryview(len(encoded).to_bytes(8, "little") + encoded), *(data for _, data in tensors)):
                rest = data.cast("B") if data.nbytes else data
                while rest.nbytes:  # the system takes at most 2 GiB at once
                    written = file.write(rest)
                    digest.update(rest[:written])
                    rest = rest[written:]
            os.fsync(file.fileno())
    except OSError as error:  # writing does not say where
        raise OSError(error.errno, error.strerror, str(path)) from error
    return {"size": start + end, "sha256": digest.hexdigest()}, [start + begin for begin in begins]


def read_header(path: Path) -> dict[str, tuple[list[int], int]]:
    """Shape of each tensor, and where its numbers begin in the file."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return {key: (one["shape"], 8 + size + one["data_offsets"][0]) for key, one in header.items()}
