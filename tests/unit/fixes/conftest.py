"""Data files of every kind, mended in a temporary folder."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from finetune_trainer import fixes
from finetune_trainer.fixes import Fixed


class DataFile(NamedTuple):
    part: str
    name: str
    path: Path


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: list[DataFile] = []

    def write(self, name: str, rows: list[Any], part: str = "train") -> Path:
        """A row is an object, or the text of a line. The kind is that of the name's ending."""
        path = self.folder / "data" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(KINDS[name.partition(".")[2]](rows))
        self.files.append(DataFile(part, f"pvc://datasets/{name}", path))
        return path

    def mend(self, *wanted: str, form: str | None = None, **options: Any) -> Fixed:
        return fixes.apply(
            self.files, wanted, form, self.folder / "mended", place="pvc://scratch/run/mended", **options
        )

    @staticmethod
    def rows(fixed: Fixed, index: int = 0) -> list[tuple[int, Any]]:
        """Lines as users know them, and the rows on them (None: cannot be used)."""
        return [(row.line, row.value) for row in fixes.read_rows(fixed.files[index].path)]


def _lines(rows: list[Any]) -> bytes:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()


def _table(rows: list[dict[str, Any]]) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


KINDS: dict[str, Callable[[list[Any]], bytes]] = {
    "jsonl": _lines,
    "json": lambda rows: json.dumps(rows, indent=1).encode(),
    "jsonl.gz": lambda rows: gzip.compress(_lines(rows), mtime=0),
    "csv": _table,
    "parquet": _parquet,
}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)
