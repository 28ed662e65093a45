"""Makes mended files: in bounded memory, the originals untouched, the same inputs giving the same bytes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from finetune_api.checks import Fix
from finetune_api.data import DataFormat
from finetune_api.findings import FixedFile, FixRecord

from finetune_trainer import sealed
from finetune_trainer.errors import BadInput
from finetune_trainer.fixes import later
from finetune_trainer.fixes.mended import MANIFEST, beside, remove
from finetune_trainer.fixes.passes import Copy, DataFile, Passes, grouped

F = TypeVar("F", bound=DataFile)


@dataclass(frozen=True, slots=True)
class Fixed(Generic[F]):
    """`files` are those to read from now on, by `fixes.read_rows`: mended ones, or the original where nothing was to be
    done; same names, same order. `records` has one entry a fix, as they were asked for; `written` one a mended file."""

    files: list[F]
    records: list[FixRecord]
    written: list[FixedFile]
    copies: list[Copy]
    fixes: tuple[Fix, ...]


def apply(
    files: Sequence[F],
    fixes: Sequence[Fix],
    form: DataFormat | None,
    folder: Path,
    *,
    place: str | None = None,
    to_publish: bool = False,
    consumed: Callable[[int], None] | None = None,
) -> Fixed[F]:
    """Mend `files` into `folder`, which users know as `place`. `form` None: that of the first row that has one.

    `to_publish`: also files from which nothing is to be dropped but rows that cannot be used, which every reader leaves
    out anyway. `consumed` is told now and then how many more bytes of the files were read. Raises BadInput for a file
    that cannot be read at all or is changed meanwhile, and for a fix that means nothing for the format.
    """
    fixes = tuple(dict.fromkeys(fixes))
    groups = grouped(fixes)
    if not groups and to_publish and "DropInvalid" in fixes:
        groups = [[]]
    copies = [Copy(index, file.name, file.path, file.path) for index, file in enumerate(files)]
    passes = Passes(files, form, consumed)
    work = folder / ".passes"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _unchanged(copies):
            for number, group in enumerate(groups):
                passes.run(group, copies, folder if number == len(groups) - 1 else work / str(number))
            mended = [
                copy
                for copy in copies
                if copy.touched.total() or (to_publish and "DropInvalid" in fixes and copy.unusable)
            ]
            for copy in mended:
                copy.digest = sealed.sha256(copy.original)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    later.check(fixes, passes.form)
    for copy in copies:
        if copy not in mended and copy.path != copy.original:
            remove(copy.path)
    for copy in mended:
        sealed.write_json(beside(copy.path, MANIFEST), copy.manifest(fixes))
    paths = {copy.index: copy.path for copy in mended}
    return Fixed(
        files=[file._replace(path=paths.get(index, file.path)) for index, file in enumerate(files)],
        records=[
            FixRecord(fix=fix, rows=passes.steps[fix].touched, detail=passes.steps[fix].detail())
            if fix in passes.steps
            else later.waiting(fix)
            for fix in fixes
        ],
        written=[copy.record(f"{(place or str(folder)).rstrip('/')}/{copy.path.name}") for copy in mended],
        copies=mended,
        fixes=fixes,
    )


@contextmanager
def _unchanged(copies: Sequence[Copy]) -> Iterator[None]:
    """Raises BadInput when a file is another one at the end than at the beginning."""

    def states() -> list[tuple[int, int]]:
        found = [copy.original.stat() for copy in copies]
        return [(stat.st_size, stat.st_mtime_ns) for stat in found]

    try:
        before = states()
        yield
        for copy, old, new in zip(copies, before, states(), strict=True):
            if old != new:
                raise BadInput(
                    f"{copy.name} was changed while it was read",
                    code="InvalidData",
                    remedy="leave the data alone while it is read, and run the job again",
                )
    except OSError as error:
        name = next((copy.name for copy in copies if str(copy.original) == str(error.filename)), None)
        if name is None:  # a full disk is no fault of the data
            raise
        raise BadInput(f"{name} cannot be read: {error.strerror}", code="InvalidData") from error
