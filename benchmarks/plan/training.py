"""Real trainings by the stages' own commands, watched from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_api.contract import JobRef, RunConfig
from finetune_api.effective import resolve
from finetune_api.planner.facts import PlanFacts
from finetune_api.spec import FineTuneJobSpec

_PAGE = os.sysconf("SC_PAGE_SIZE")
_EVERY = 0.002
"""Seconds between two looks at a process."""


@dataclass
class Watch:
    """Largest resident memory of each process of a training, in bytes."""

    peaks: dict[int, int] = field(default_factory=dict)
    _over: threading.Event = field(default_factory=threading.Event)

    def follow(self, parent: int) -> None:
        while not self._over.is_set():
            for process in _descendants(parent):
                size = _resident(process)
                if size > self.peaks.get(process, 0):
                    self.peaks[process] = size
            time.sleep(_EVERY)

    def end(self) -> int:
        self._over.set()
        return max(self.peaks.values(), default=0)


def _descendants(parent: int) -> list[int]:
    found, waiting = [], [parent]
    while waiting:
        process = waiting.pop()
        try:
            text = Path(f"/proc/{process}/task/{process}/children").read_text()
        except OSError:
            continue
        children = [int(one) for one in text.split()]
        found += children
        waiting += children
    return found


def _resident(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


class Training:
    """A job in a folder with claims as the stages see them: models/base, datasets/rows.jsonl, scratch."""

    def __init__(self, folder: Path, spec: dict[str, Any], *, run: str = "bench") -> None:
        self.folder, self.run = folder, run
        places = {
            "model": {"uri": "pvc://models/base"},
            "data": {
                "train": [{"uri": "pvc://datasets/rows.jsonl"}],
                "split": {"train": 1.0, "validation": 0.0, "test": 0.0},
            },
            "workspace": {"uri": "pvc://scratch"},
            "output": {"uri": "pvc://scratch/out"},
        }
        self.given = FineTuneJobSpec.model_validate(places | spec | {"data": places["data"] | spec.get("data", {})})
        for claim in ("models", "datasets", "scratch"):
            (folder / claim).mkdir(parents=True, exist_ok=True)

    def config(self, stage: str) -> RunConfig:
        return RunConfig(
            job=JobRef(name="bench", namespace="bench", uid="bench", run=self.run),
            stage=stage,  # type: ignore[arg-type]
            attempt=1,
            spec=resolve(self.given),
            claims_root=str(self.folder),
        )

    @property
    def manifest(self) -> dict[str, Any]:
        folder = self.config("train").layout.prepared
        return json.loads((folder / "manifest.json").read_text())

    @property
    def spec(self) -> FineTuneJobSpec:
        """As the train stage sees it."""
        return resolve(self.given, decided=self.manifest["decided"])

    def facts(self) -> PlanFacts:
        """As prepare left them."""
        return PlanFacts.model_validate(self.manifest["facts"])

    def stage(self, stage: str, watch: Watch | None = None, **variables: str) -> float:
        """Run it, with more environment `variables`; seconds that it took. Raises SystemExit with its last words."""
        path = self.folder / f"{stage}-{self.run}.json"
        path.write_text(self.config(stage).encode())
        environment = os.environ | {
            "FINETUNE_SCRATCH": str(self.folder / f"scratch-{stage}-{self.run}"),
            "FINETUNE_TERMINATION_LOG": str(self.folder / "termination"),
            "FINETUNE_PROGRESS_PORT": "0",
            "JOB_COMPLETION_INDEX": "0",
            **variables,
        }
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "finetune_trainer", stage, "--config", str(path)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        if watch is not None:
            threading.Thread(target=watch.follow, args=(process.pid,), daemon=True).start()
        said, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"{stage} of {self.folder}: exit code {process.returncode}\n{said[-3000:]}")
        return time.monotonic() - began


def write_base(folder: Path, shape: dict[str, Any], *, vocabulary: int) -> None:
    """A tokenizer of whole words and random weights. The words are w0, w1 ..., so that rows have as many tokens as words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    words = {"<pad>": 0, "<end>": 1, "<unknown>": 2} | {f"w{i}": i + 3 for i in range(vocabulary - 3)}
    core = Tokenizer(models.WordLevel(words, unk_token="<unknown>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>")
    tokenizer.save_pretrained(folder)
    settings = {name: value for name, value in shape.items() if name != "model_type"}
    config = AutoConfig.for_model(
        shape["model_type"], vocab_size=vocabulary, eos_token_id=1, bos_token_id=1, pad_token_id=0, **settings
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def write_rows(path: Path, lengths: list[int]) -> None:
    """Plain texts of so many tokens each, the end token among them."""
    lines = []
    for number, length in enumerate(lengths):
        words = " ".join(f"w{(number * 7919 + i * 31) % 8000}" for i in range(length - 1))
        lines.append(json.dumps({"text": words}))
    path.write_text("\n".join(lines) + "\n")
