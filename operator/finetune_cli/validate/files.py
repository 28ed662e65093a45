"""From the words on the command line to files: what is a manifest, what is data."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finetune_api import GROUP, KIND
from finetune_api.data import FILE_ENDINGS, PACKINGS

from finetune_cli.errors import CliError
from finetune_cli.manifest import STDIN, text_of

MANIFESTS = (".yaml", ".yml")
PACKED = tuple(f".{packing}" for packing in PACKINGS)
_HEAD = 4096
_HELM = re.compile(r"\{\{-?\s*(\.|\$|/\*|(if|range|with|end|else|include|template|define|toYaml)\b)")


@dataclass(frozen=True, slots=True)
class Input:
    """One file (or a folder of data)."""

    file: str
    kind: Literal["manifest", "data"]


def inputs(words: Iterable[str]) -> list[Input]:
    """Each file once, in order. Raises CliError for a word that names none."""
    return list(dict.fromkeys(found for word in words for found in _of(word)))


def holds_job(file: str) -> bool:
    """Whether a manifest can hold one of ours at all; a folder of YAML holds much that is not (charts are not even YAML)."""
    try:
        text = Path(file).read_bytes().lower()
    except OSError:
        return True  # whoever reads it says why
    return f"{GROUP}/".encode() in text or KIND.lower().encode() in text


def is_template(file: str) -> bool:
    """Whether Helm has to write the manifest first."""
    return _HELM.search(text_of(file)[1]) is not None


def _of(word: str) -> Iterator[Input]:
    path = Path(word)
    if word == STDIN:
        yield Input(word, "manifest")
    elif path.is_dir():
        manifests = sorted(file for suffix in MANIFESTS for file in path.rglob(f"*{suffix}") if file.is_file())
        ours = [str(file) for file in manifests if holds_job(str(file))]
        yield from [Input(file, "manifest") for file in ours] or [Input(word, "data")]
    elif path.exists() or not glob.has_magic(word):
        yield _single(path, word)
    else:
        found = sorted(glob.glob(word, recursive=True))  # noqa: PTH207, absolute ones too
        if not found:
            raise CliError(f"{word}: no file has such a name")
        yield from (_single(Path(file), file) for file in found if Path(file).is_file())


def _single(path: Path, word: str) -> Input:
    if not path.exists():
        raise CliError(f"{word}: there is no such file")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    kind = suffixes[-1] if suffixes else ""
    if kind in MANIFESTS or (kind == ".json" and _looks_like_manifest(path)):
        return Input(word, "manifest")
    if kind in FILE_ENDINGS:
        return Input(word, "data")
    raise CliError(
        f"{word}: neither a manifest ({', '.join(MANIFESTS)}) nor data ({', '.join(FILE_ENDINGS)}, also with {', '.join(PACKED)})"
    )


def _looks_like_manifest(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    return f"{GROUP}/".encode() in head and b'"kind"' in head
