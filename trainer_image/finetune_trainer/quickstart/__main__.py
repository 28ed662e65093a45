"""`python -m finetune_trainer.quickstart --output DIR`: writes DIR/base and DIR/data, or finds that they are there."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from finetune_trainer import sealed
from finetune_trainer.data.digests import files_digest


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="finetune_trainer.quickstart", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder that gets base/ and data/")
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args(arguments)
    started = time.monotonic()
    recipe = {
        "kind": "quickstart",
        "recipe": files_digest(sorted(Path(__file__).parent.glob("*.py"))),
        "seed": options.seed,
    }
    if all(_is_there(options.output / name, recipe) for name in ("base", "data")):
        print(f"The base model and the data are already in {options.output}.", flush=True)
        return 0
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or a library that is imported on the way complains
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from finetune_trainer.quickstart.base import NotLearnt, make_base  # imports torch
    from finetune_trainer.quickstart.data import write_data

    print("Training a small base model from nothing ...", flush=True)
    try:
        with sealed.sealing(options.output / "base", dict(recipe)) as folder:
            make_base(folder, options.seed, lambda line: print(line, flush=True))
    except NotLearnt as error:
        print(f"quickstart: {error}", file=sys.stderr)
        return 1
    with sealed.sealing(options.output / "data", dict(recipe)) as folder:
        write_data(folder, options.seed)
    print(f"Wrote {options.output}/base and {options.output}/data in {time.monotonic() - started:.0f} s.", flush=True)
    return 0


def _is_there(folder: Path, recipe: dict[str, object]) -> bool:
    try:
        manifest = sealed.verify(folder)
    except sealed.Torn:
        return False
    return all(manifest.get(name) == value for name, value in recipe.items())


if __name__ == "__main__":
    sys.exit(main())
