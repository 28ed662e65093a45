"""Files of named fp32 tensors in the safetensors format, written straight from memory: no copies, and true error numbers."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_ALIGNMENT = 8
assert sys.byteorder == "little", "the format is little-endian, and so must be what is written as it lies"


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor: `data` are its fp32 numbers, row by row."""

    key: str
    shape: tuple[int, ...]
    data: memoryview


def write_file(path: Path, tensors: Sequence[Stored]) -> None:
    """Raises OSError."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.data.nbytes
        header[tensor.key] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    try:
        with path.open("wb", buffering=0) as file:
            _write(file, memoryview(len(encoded).to_bytes(8, "little") + encoded))
            for tensor in tensors:
                _write(file, tensor.data)
    except OSError as error:  # writing does not say where
        raise OSError(error.errno, error.strerror, str(path)) from error


def _write(file: io.RawIOBase, data: memoryview) -> None:
    data = data.cast("B") if data.nbytes else data
    while data.nbytes:  # the system takes at most 2 GiB at once
        data = data[file.write(data) :]
