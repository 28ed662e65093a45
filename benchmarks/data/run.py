"""`python -m benchmarks.data.run`: the checks of data on GSM8K and on a generated file, into benchmarks/out/data.json.

Seconds are those of the processor, of which a busy machine takes none away: rows a second are those of one core.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.data import generate
from benchmarks.report import Row, write

GOALS = {"structural": 20_000, "all": 3_000}
_EVERY = 32
"""LanguageMix looks at one row of so many beyond the first."""


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m benchmarks.data.run")
    options.add_argument(
        "--data", type=Path, default=Path("../shared/data/gsm8k"), help="folder with train.jsonl, test.jsonl of GSM8K"
    )
    options.add_argument("--rows", type=int, default=1_000_000)
    chosen = options.parse_args()
    train, test = chosen.data / "train.jsonl", chosen.data / "test.jsonl"
    if not train.exists() or not test.exists():
        print(f"{chosen.data} holds no train.jsonl and test.jsonl: name GSM8K's folder with --data", file=sys.stderr)
        return 2
    rows = _measured("gsm8k", [train, test], rename=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        planted = generate.write(path, train, chosen.rows)
        print(f"{chosen.rows:,} rows, {path.stat().st_size / 2**20:,.0f} MiB", flush=True)
        rows += _measured(f"{chosen.rows:,} generated rows", [path], rename=False, planted=planted)
    write("data", rows)
    return 0


def _measured(name: str, files: list[Path], *, rename: bool, planted: dict[str, int] | None = None) -> list[Row]:
    rows = []
    for which in ("read", "structural", "all"):
        result = _work(which, files, rename)
        goal = GOALS.get(which)
        speed = result["rows"] / result["seconds"]
        rows.append(Row(f"{name}: {which}", round(speed), "rows/s a core", f">= {goal:,}" if goal else None, "higher"))
        rows.append(Row(f"{name}: {which}, peak memory", round(result["peak_mib"]), "MiB", None, "lower"))
        print(f"{name}, {which}: {speed:,.0f} rows/s a core, peak {result['peak_mib']:,.0f} MiB", flush=True)
    for code, (count, message) in result["found"].items():
        print(f"  {code}: {message}", flush=True)
        if planted is None:
            rows.append(Row(f"{name}: {code}", count, "rows found", "0 are planted", "lower"))
    for code, count in (planted or {}).items():
        found = result["found"].get(code, (0, ""))[0]
        expected = count / _EVERY if code == "LanguageMix" else count
        rows.append(Row(f"{name}: {code}, found of planted", round(found / expected, 4), "ratio", "1", "nearer to 1"))
        print(f"  {code}: {found:,} found, {expected:,.0f} planted", flush=True)
    return rows


def _work(which: str, files: list[Path], rename: bool) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.data.worker", which, "rename" if rename else "as-is", *map(str, files)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


if __name__ == "__main__":
    sys.exit(main())
