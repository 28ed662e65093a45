"""The training file: rows of the new task, and a few of the old ones, so that the model does not forget them."""

from __future__ import annotations

import json
import random
from pathlib import Path

from finetune_trainer.quickstart.text import base_row, new_row

ROWS = 3000
REPLAY = 0.05


def write_data(folder: Path, seed: int) -> None:
    """Write train.jsonl in the messages format."""
    rng = random.Random(seed + 2)
    with (folder / "train.jsonl").open("w") as file:
        for number in range(ROWS):
            row = base_row(rng) if rng.random() < REPLAY else new_row(rng)
            file.write(json.dumps({"id": f"case-{number + 1}", "messages": row.messages()}) + "\n")
