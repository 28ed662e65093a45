"""What a data file is, by its content: its name decides only where the content leaves it open."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

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

Split = Literal["train", "validation", "test"]
_SPLITS: dict[str, Split] = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
_NAMED = re.compile(rf"(?<![^-._ 0-9])({'|'.join(_SPLITS)})(?![^-._ 0-9])", re.IGNORECASE)
_SHARD = re.compile(r".*-\d{5}(?=-of-\d{5})")

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


def of_split(files: Sequence[Path], folder: Path, split: Split) -> list[Path]:
    """Of a folder's files those of one split, by the rules of Hugging Face's datasets; names without a split are train's.

    A folder whose names tell no split, or one split where held-out rows are wanted, is read whole. Raises Unreadable when it
    has files of other splits only, or several configurations, which are data sets of their own.
    """
    splits = [_split_of(file.relative_to(folder)) for file in files]
    named = set(splits) - {None}
    if named and (len(named) > 1 or split == "train" or None in splits):
        files = [file for file, own in zip(files, splits, strict=True) if (own or "train") == split]
    if not files:
        others = " and ".join(sorted(filter(None, named)))
        raise Unreadable(f"holds no file of the {split} split, only of {others}", "name the files that you mean")
    shards: dict[str, Path] = {}
    for file in files:
        shard = _SHARD.match(file.name)
        if shard and (first := shards.setdefault(shard[0], file)).parent != file.parent:
            names = " and ".join(str(one.parent.relative_to(folder)) for one in (first, file))
            raise Unreadable(f"holds several configurations, such as {names}", "name the folder of one of them")
    return list(files)


def _split_of(path: Path) -> Split | None:
    """By the file's name, else by the nearest folder's."""
    found = next((match for part in reversed(path.parts) if (match := _NAMED.search(part))), None)
    return None if found is None else _SPLITS[found[1].lower()]


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
