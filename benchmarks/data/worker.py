"""Checks the rows of files in a process of its own, so that its peak memory is its own: prints one JSON object."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

from finetune_api.checks import CHECKS, CheckCode
from finetune_api.data import ChecksSpec
from finetune_trainer.checks.suite import Suite
from finetune_trainer.data import formats, readers

STRUCTURAL: tuple[CheckCode, ...] = ("ExactDuplicates", "ConflictingAnswers", "Leakage")
"""Beside what reading itself checks: JSON, encoding, fields, roles and turns."""
WHICH: dict[str, tuple[CheckCode, ...] | None] = {"read": None, "structural": STRUCTURAL, "all": tuple(CHECKS)}


def main() -> None:
    which, rename, *names = sys.argv[1:]
    only = WHICH[which]
    began, rows = time.process_time(), 0
    suite = Suite(ChecksSpec(), form="prompt-completion", only=only) if only else None
    for number, name in enumerate(names):
        part = "test" if Path(name).stem == "test" else "train"
        for raw in readers.read_rows(Path(name)):
            assert raw.value is not None
            if rename == "rename":
                raw.value["prompt"], raw.value["completion"] = raw.value.pop("question"), raw.value.pop("answer")
            example = formats.read(raw.value, "prompt-completion")
            rows += 1
            if suite is not None:
                suite.see(part, number, raw.line, example)
    findings = suite.findings(names) if suite else []
    seconds = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        json.dumps(
            {
                "rows": rows,
                "seconds": seconds,
                "peak_mib": peak,
                "found": {finding.code: (finding.count, finding.message) for finding in findings},
            }
        )
    )


if __name__ == "__main__":
    main()
