"""`make gpu`: everything that only a GPU can show, within nine minutes, each under its own time limit; benchmarks/out/gpu.json.

A case that fails, or does not end in time, does not keep the others from running. Exit code 1 if any did.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import OUT, Row, write

REPOSITORY = Path(__file__).parents[2]
ON_GPU = torch.cuda.is_available()
_NO_GPU = "no GPU here: the case ran its tiny shapes on the CPU"
LIMIT_S = 540


@dataclass(frozen=True)
class Job:
    """A process, and where it leaves its figures: the last line of its output, or a file of benchmarks/out."""

    name: str
    arguments: tuple[str, ...]
    seconds: int
    writes: str | None = None


def jobs(model: Path | None, window: int) -> list[Job]:
    """The quick ones first: what they find explains the others."""
    given = ("--model", str(model)) if model is not None else ()
    checks = [
        Job(name, ("-m", "benchmarks.gpu.checks", name, *given), 45)
        for name in ("packing", "dtypes", "qlora", "uneven")
    ]
    speed = [
        Job(
            name,
            ("-m", "benchmarks.gpu.run", "--case", name, "--rival", "trl-tuned", "--window", str(window)),
            95,
            f"gpu-{name}",
        )
        for name in ("lora-8b", "qlora-8b", "full-3b")
    ]
    return [*checks, Job("engines", ("-m", "pytest", "-q", "-rs", "tests/gpu"), 75), *speed]


def run(job: Job, seconds: float) -> tuple[list[Row], bool]:
    """Its figures, and whether it passed."""
    written = OUT / f"{job.writes}.json" if job.writes else None
    if written is not None:
        written.unlink(missing_ok=True)
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}:{os.environ.get('PYTHONPATH', '')}"}
    print(f"\n== {job.name} (at most {seconds:.0f} s)", flush=True)
    process = subprocess.Popen(
        [sys.executable, *job.arguments],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
        why = None if process.returncode == 0 else f"exit code {process.returncode}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        why = f"not within {seconds:.0f} s"
    print(output, end="", flush=True)
    rows, passed = _figures(job, output, written)
    passed = passed and why is None
    if not ON_GPU:
        rows, why = [replace(row, value=None, rival_value=None, why=_NO_GPU) for row in rows], why or _NO_GPU
    return [Row(f"{job.name}: passed", float(passed), "1 or 0", "1", "higher", why=why), *rows], passed


def _figures(job: Job, output: str, written: Path | None) -> tuple[list[Row], bool]:
    if written is not None:
        if not written.exists():
            return [], False
        names = Row.__dataclass_fields__.keys()
        found = json.loads(written.read_bytes())["rows"]
        return [Row(**{name: row.get(name) for name in names}) for row in found], True
    if job.arguments[1] != "benchmarks.gpu.checks":
        return [], True
    try:
        values: dict[str, Any] = json.loads(output.splitlines()[-1])
    except (IndexError, ValueError):
        return [], False
    passed = values.pop("passed")
    numbers = {name: value for name, value in values.items() if isinstance(value, (int, float))}
    return [Row(f"{job.name}: {name}", value, "", None, "lower") for name, value in numbers.items()], bool(passed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="folder of a pretrained model")
    parser.add_argument("--window", type=int, default=6, help="steps in each of three windows")
    options = parser.parse_args()
    end = time.monotonic() + LIMIT_S
    device = torch.cuda.get_device_name(0) if ON_GPU else _NO_GPU
    print(device, flush=True)
    rows, failed = [], []
    for job in jobs(options.model, options.window):
        left = end - time.monotonic()
        if left < 1:
            rows.append(Row(f"{job.name}: passed", None, "1 or 0", "1", "higher", why="no time was left"))
            failed.append(job.name)
            continue
        found, passed = run(job, min(job.seconds, left))
        rows += found
        failed += [] if passed else [job.name]
        write("gpu", rows)  # also where the next one takes the machine with it
    print(f"{device}: " + (f"failed: {', '.join(failed)}" if failed else "everything passed"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
