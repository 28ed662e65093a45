"""The run's curves: one JSON object a line, appended, in the attempt's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune_api.evaluation import Metric

FILE = "history.jsonl"


class History:
    """On other ranks than 0 (`folder` None) it does nothing."""

    def __init__(self, folder: Path | None) -> None:
        self._file = (folder / FILE).open("a", buffering=1) if folder is not None else None

    def append(self, **values: Any) -> None:
        if self._file is not None:
            self._file.write(json.dumps(values, separators=(",", ":"), allow_nan=False) + "\n")


def eval_name(metric: Metric) -> str:
    """What a metric of the validation split is called, here and in the termination message: eval_loss, eval_exact_match."""
    return f"eval_{metric.replace('-', '_')}"
