"""Mends the data where that is asked for, before anything else reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from finetune_api.contract import RunConfig

from finetune_trainer import fixes
from finetune_trainer.fixes import Fixed
from finetune_trainer.prepare.files import DataFile

FOLDER = "mended"
"""Below the run's folder: the originals may be read-only, and stay as they are."""

Mended: TypeAlias = Fixed[DataFile]


def mend(config: RunConfig, originals: Sequence[DataFile], *, beside: bool = False) -> Mended | None:
    """None when nothing was asked for. `beside`: mended copies are put beside the originals too, for people to keep.

    Sets in `config` what its fixes imply. Raises BadInput.
    """
    data = config.spec.data
    if not data.fixes:
        return None
    config.spec = config.spec.model_copy(update={"data": fixes.settled(data)})
    run = f"{config.spec.workspace.uri.rstrip('/')}/{config.job.uid}/{config.job.run}"
    mended = fixes.apply(
        originals, data.fixes, data.format, config.layout.root / FOLDER, place=f"{run}/{FOLDER}", to_publish=beside
    )
    if beside:
        written = fixes.publish(mended, allowed=data.checks.max_invalid_fraction)
        mended = Fixed(mended.files, mended.records, written, mended.copies, mended.fixes)
    return mended
