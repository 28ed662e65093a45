"""Two gloo processes that run the same script: cells of a matrix, without a new gang for each."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]


def run(script: str, folder: Path, *, seconds: float, quantises: bool = False, **environment: str) -> None:
    """`script RANK FOLDER` as ranks 0 and 1, which must both end well within `seconds`; what they said is in the error.

    As in training, ranks that quantise nothing do not import bitsandbytes.
    """
    common = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *sys.path]),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "DEEPSPEED_LOG_LEVEL": "error",
        **environment,
    }
    outputs = [folder / f"output-{rank}" for rank in range(2)]
    ranks = [
        subprocess.Popen(
            [
                sys.executable,
                "-W",
                "ignore",
                __file__,
                "quantises" if quantises else "",
                script,
                str(rank),
                str(folder),
            ],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
            stdout=output.open("w"),
            stderr=subprocess.STDOUT,
        )
        for rank, output in enumerate(outputs)
    ]
    try:
        codes = [rank.wait(seconds) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert codes == [0, 0], "".join(output.read_text()[-3000:] for output in outputs)


def found(folder: Path, rank: int = 0) -> Any:
    """What a rank wrote into rank-RANK.json."""
    return json.loads((folder / f"rank-{rank}.json").read_text())


if __name__ == "__main__":
    from finetune_trainer import lean

    sys.argv.pop(0)
    if not sys.argv.pop(0):
        lean.hide_bitsandbytes()
    lean.list_models_once()
    runpy.run_path(sys.argv[0], run_name="__main__")
