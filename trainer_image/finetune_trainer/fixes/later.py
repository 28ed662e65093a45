"""Fixes that need what is known only after the files were read: what they set, and what is said of them at the end."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_api.checks import Fix
from finetune_api.data import DataFormat, DataSpec
from finetune_api.findings import FixRecord

from finetune_trainer.errors import BadInput
from finetune_trainer.fixes.steps import rows_say, was

_NOTHING: dict[Fix, str] = {
    "DropInvalid": "Every row can be used: none was left out.",
    "Truncate": "No row is longer than spec.data.maxLength: none was cut.",
    "Rebalance": "All labels have equally many rows to train on: none was copied.",
    "DropNearDuplicates": "There are no rows.",
    "DropDuplicates": "There are no rows.",
    "RedactPii": "There are no rows.",
    "RedactSecrets": "There are no rows.",
}


def settled(data: DataSpec) -> DataSpec:
    """`data` with what its fixes set: DropInvalid any share of invalid rows, Truncate `overlong: truncate`."""
    fixes = data.fixes or ()
    if "DropInvalid" in fixes:
        data = data.model_copy(update={"checks": data.checks.model_copy(update={"max_invalid_fraction": 1.0})})
    if "Truncate" in fixes:
        data = data.model_copy(update={"overlong": "truncate"})
    return data


def check(fixes: Sequence[Fix], form: DataFormat | None) -> None:
    """Raises BadInput (InvalidSpec) for a fix that means nothing for the data's format."""
    if "Rebalance" in fixes and form not in (None, "classification"):
        raise BadInput(
            f"spec.data.fixes: Rebalance needs rows with labels, but the format of these is {form}",
            code="InvalidSpec",
            remedy="leave Rebalance out",
        )


def waiting(fix: Fix) -> FixRecord:
    """What is recorded of a fix until `completed` knows better."""
    return FixRecord(fix=fix, rows=0, detail=_NOTHING[fix])


def completed(
    records: Sequence[FixRecord],
    *,
    invalid: int = 0,
    truncated: int = 0,
    lost_tokens: int = 0,
    rebalanced: tuple[int, str] | None = None,
) -> list[FixRecord]:
    """With the numbers that only prepare knows: rows that cannot be used, rows that were cut and the tokens that they lost,
    and rows that were copied with a sentence about them (`rebalance.sentence`)."""
    told: dict[Fix, tuple[int, str]] = {
        "DropInvalid": (invalid, f"{rows_say(invalid, 'cannot', 'cannot')} be used, and {was(invalid)} left out."),
        "Truncate": (
            truncated,
            f"{rows_say(truncated, 'was', 'were')} cut to spec.data.maxLength, and lost {lost_tokens:,} tokens.",
        ),
        "Rebalance": rebalanced or (0, _NOTHING["Rebalance"]),
    }
    return [
        record.model_copy(update={"rows": told[record.fix][0], "detail": told[record.fix][1]})
        if record.fix in told and told[record.fix][0]
        else record
        for record in records
    ]
