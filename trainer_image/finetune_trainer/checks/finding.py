"""From what was found to what people are told: how much it matters, what to do, and whether it refuses the data."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_api.checks import CHECKS, CheckCode, severity_of
from finetune_api.data import ChecksSpec
from finetune_api.findings import ROWS_SHOWN, Finding, RowRef


def finding(
    spec: ChecksSpec,
    code: CheckCode,
    message: str,
    rows: Sequence[RowRef],
    *,
    count: int,
    of: int,
    too_many: bool = False,
    remedy: str | None = None,
) -> Finding:
    """Of `count` among `of`, of which `rows` are the first. `too_many`: more than data.checks allows, whatever it fails on.

    `remedy`: what to do about these rows, in place of what the check always advises.
    """
    fail = tuple(spec.fail or ())
    return Finding(
        code=code,
        severity="Error" if too_many else severity_of(code, fail=fail),
        count=count,
        fraction=count / of if of else None,
        message=message,
        remedy=remedy or CHECKS[code].remedy,
        refuses=too_many or code in fail,
        rows=list(rows[:ROWS_SHOWN]),
    )
