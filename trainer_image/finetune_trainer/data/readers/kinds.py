"""What a data file is, by its content: its name decides only where the content leaves it open."""

from __future__ import annotations

from pathlib import Path

from finetune_api.data import FILE_ENDINGS, PACKINGS

from finetune_trainer.data.readers.arrays import wrapped_at
from finetune_trainer.data.readers.content import BOM, HEAD_BYTES, Content
from finetune_trainer.data.readers.parquet import MAGIC
from finetune_trainer.data.readers.row import Unreadable
from finetune_trainer.data.readers.tables import names_fields

_TABLES = (".csv", ".tsv", ".tab")
SUFFIXES = (*FILE_ENDINGS, *(f"{ending}.{packing}" for ending in FILE_ENDINGS for packing in PACKINGS))
"""Endings of names of data files, in lower case."""

_NOT_DATA = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "croissant.json"})
"""What Hugging Face's datasets lays beside data."""

_MENDED, _MANIFEST = ".fixed.jsonl", ".fixed.manifest.json"


def data_files(path: Path) -> list[Path]:
    """The file itself, or the data files of a folder and its subfolders, by name. Raises Unreadable when there is none."""
    if not path.is_dir():
        return [path]
    files = sorted(
        file
        for file in path.rglob("*")
        if file.name.lower().endswith(SUFFIXES)
        and file.name.lower() not in _NOT_DATA
        and not _is_mended(file)
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not files:
        raise Unreadable(f"holds no {', '.join(FILE_ENDINGS)} file, plain or compressed")
    return files


def _is_mended(file: Path) -> bool:
    """Whether `ftj validate --fix` wrote it beside its original: whoever names the folder would read most rows twice."""
    manifest = file.with_name(file.name.removesuffix(_MENDED) + _MANIFEST)
    return file.name.endswith(_MANIFEST) or (file.name.endswith(_MENDED) and manifest.is_file())


def kind_of(content: Content, path: Path) -> str:
    """jsonl, json (one array, or one object that holds one), csv or parquet. Raises Unreadable for what is empty."""
    head = content.head.removeprefix(BOM)
    start = head.lstrip(b" \t\r\n")
    table = path.name.lower().removesuffix(f".{content.packing}").endswith(_TABLES)
    if start.startswith(MAGIC):
        return "parquet"
    if not start and len(content.head) < HEAD_BYTES:
        raise Unreadable("is empty")
    if table:
        return "csv"
    if start.startswith(b"["):
        return "json"
    if start.startswith(b"{"):
        return "json" if wrapped_at(start) else "jsonl"
    return "csv" if names_fields(head) else "jsonl"
