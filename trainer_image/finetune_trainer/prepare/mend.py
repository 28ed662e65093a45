"""Mends the data where that is asked for, before anything else reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

from finetune_api.contract import RunConfig

from finetune_trainer import fixes
from finetune_trainer.fixes import Fixed
from finetune_trainer.prepare.files import DataFile

FOLDER = "mended"
"""Below the run's folder: the originals may be read-only, and stay as they are."""

Mended: TypeAlias = Fixed[DataFile]


def imply(config: RunConfig) -> None:
    """Set in `config` what its fixes imply, before anything is made of it."""
    config.spec = config.spec.model_copy(update={"data": fixes.settled(config.spec.data)})


def mend(config: RunConfig, originals: Sequence[DataFile], *, beside: bool = False) -> Mended | None:
    """None when nothing was asked for. `beside`: mended copies are put beside the originals too, for people to keep.

    Raises BadInput.
    """
    data = config.spec.data
    if not data.fixes:
        return None
    run = f"{config.spec.workspace.uri.rstrip('/')}/{config.job.uid}/{config.job.run}"
    mended = fixes.apply(
        originals, data.fixes, data.format, config.layout.root / FOLDER, place=f"{run}/{FOLDER}", to_publish=beside
    )
    if beside:
        mended = replace(mended, written=fixes.publish(mended, allowed=data.checks.max_invalid_fraction))
    return mended
