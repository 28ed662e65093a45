"""One contender in a process of its own: `python -m benchmarks.trainer.worker NAME WORKLOAD FD`, orders on standard input, answers on FD."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

from benchmarks.trainer.contenders import CONTENDERS
from benchmarks.trainer.pace import Finished, Pace
from benchmarks.trainer.workload import Workload


def main() -> None:
    name, described, answers = sys.argv[1:]
    warnings.simplefilter("ignore")
    fields = json.loads(described)
    workload = Workload(**(fields | {"folder": Path(fields["folder"])}))
    try:
        CONTENDERS[name](workload, Pace(sys.stdin, os.fdopen(int(answers), "w")))
    except Finished:
        return


if __name__ == "__main__":
    main()
