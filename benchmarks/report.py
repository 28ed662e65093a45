"""One form for all benchmarks' results: `benchmarks/out/NAME.json`."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

OUT = Path(__file__).parent / "out"


@dataclass(frozen=True)
class Row:
    """One figure, and a rival's beside it. `value` None: not measured here, and `why`."""

    metric: str
    value: float | None
    unit: str
    goal: str | None
    better: str
    rival: str | None = None
    rival_value: float | None = None
    why: str | None = None

    def to_json(self) -> dict[str, Any]:
        both = self.value is not None and self.rival_value is not None
        ratio = round(self.value / self.rival_value, 4) if both else None  # type: ignore[operator]
        out = asdict(self) | {"ratio": ratio}
        if self.why is None:
            del out["why"]
        return out


def write(name: str, rows: list[Row]) -> Path:
    """Write the results of benchmark `name`, with machine, commit and date; where."""
    OUT.mkdir(exist_ok=True)
    path = OUT / f"{name}.json"
    content = {
        "machine": machine(),
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "rows": [row.to_json() for row in rows],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"written to {path}")
    return path


def machine() -> str:
    cpu = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        memory = f", {round(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30)} GiB"
    except (OSError, StopIteration):
        memory = ""
    return f"{os.cpu_count()} cores of {cpu}{memory}, {platform.system()}"


def _commit() -> str | None:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=OUT.parent, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None
