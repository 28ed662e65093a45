"""Mended files beside the originals (`ftj validate --fix`): train.fixed.jsonl for train.jsonl, with a manifest."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from finetune_api.findings import FixedFile

from finetune_trainer import sealed
from finetune_trainer.errors import BadInput
from finetune_trainer.fixes.apply import Fixed
from finetune_trainer.fixes.mended import MANIFEST, beside
from finetune_trainer.fixes.passes import Copy, stem


def publish(fixed: Fixed, *, allowed: float) -> list[FixedFile]:
    """Put the mended files beside their originals. What is there already is never overwritten, unless it is the very same.

    `allowed` is the share of rows that may be missing because they cannot be used. Raises BadInput: for more of them,
    for other files in the way, for folders that cannot be written to. Of several files, none is put there then.
    """
    for copy in fixed.copies:
        _check_unusable(copy, 1.0 if "DropInvalid" in fixed.fixes else allowed)
    targets = {copy.index: copy.original.with_name(f"{stem(copy.original)}.fixed.jsonl") for copy in fixed.copies}
    wanted: dict[Path, Copy] = {}
    for copy in fixed.copies:
        _check_free(copy, targets[copy.index], wanted.setdefault(targets[copy.index], copy))
    written = []
    for copy in fixed.copies:
        target = targets[copy.index]
        try:
            _put(copy.path, target)
            sealed.write_json(beside(target, MANIFEST), copy.manifest(fixed.fixes))
        except OSError as error:
            raise BadInput(
                f"{target} cannot be written: {error.strerror}",
                code="InvalidData",
                remedy="copy the data to a folder that you may write to",
            ) from error
        written.append(copy.record(str(target)))
    return written


def _check_unusable(copy: Copy, allowed: float) -> None:
    if copy.first_unusable is None or copy.unusable / copy.rows <= allowed:
        return
    line, reason = copy.first_unusable
    raise BadInput(
        f"{copy.name}:{line}: {reason}; {copy.unusable} of {copy.rows} rows cannot be used, and a fixed file would not have them",
        code="InvalidData",
        remedy="correct them, or name the fix DropInvalid in spec.data.fixes",
    )


def _check_free(copy: Copy, target: Path, first: Copy) -> None:
    if first is not copy:
        raise BadInput(
            f"{copy.name} and {first.name} would both be written as {target}",
            code="OutputTaken",
            remedy="rename one of them",
        )
    if target.exists() and (not target.is_file() or sealed.sha256(target) != copy.fixed_digest):
        raise BadInput(
            f"{target} already exists and is not what the fixes of {copy.name} give now",
            code="OutputTaken",
            remedy="move it away or remove it, and try again",
        )


def _put(source: Path, target: Path) -> None:
    """Copy whole or not at all, under a name that is free (or holds the very same already)."""
    if target.exists():
        return
    temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    try:
        shutil.copyfile(source, temporary)
        sealed.sync(temporary)
        try:
            os.link(temporary, target)  # fails where another process was faster
        except (FileExistsError, FileNotFoundError):
            raise
        except OSError:  # a file system without hard links
            temporary.rename(target)
        sealed.sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)
