"""What all contenders train: a small random model with a vocabulary of its own, and rows that prepare has tokenised."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VOCABULARY = 8192
SHAPE = {
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
"""Llama's blocks, 13 million parameters."""
LORA = {"rank": 16, "alpha": 32.0}
LEARNING_RATE = 2e-4


@dataclass(frozen=True)
class Workload:
    """A folder with claims as the trainer sees them: models/base, datasets/rows.jsonl, scratch. `method` is full or lora."""

    folder: Path
    method: str
    rows_per_step: int
    steps: int
    compile: bool

    @property
    def model(self) -> Path:
        return self.folder / "models" / "base"

    def config(self, stage: str) -> Any:
        """The run config of one of our own stages."""
        from finetune_api.contract import JobRef, RunConfig
        from finetune_api.effective import resolve
        from finetune_api.spec import FineTuneJobSpec

        method = {"type": self.method} | ({"lora": LORA} if self.method == "lora" else {})
        spec = {
            "model": {"uri": "pvc://models/base"},
            "method": method,
            "data": {
                "train": [{"uri": "pvc://datasets/rows.jsonl"}],
                "split": {"train": 1.0, "validation": 0.0, "test": 0.0},
            },
            "training": {
                "maxSteps": self.steps,
                "globalBatchSize": self.rows_per_step,
                "learningRate": LEARNING_RATE,
                "precision": "fp32",
                "compile": self.compile,
            },
            "checkpoint": {"everySteps": self.steps},
            "compute": {"device": "cpu", "strategy": "ddp"},
            "workspace": {"uri": "pvc://scratch"},
            "output": {"uri": "pvc://scratch/out"},
        }
        return RunConfig(
            job=JobRef(name="bench", namespace="bench", uid="bench", run="bench"),
            stage=stage,  # type: ignore[arg-type]
            attempt=1,
            spec=resolve(FineTuneJobSpec.model_validate(spec), decided={}),
            claims_root=str(self.folder),
        )

    def shards(self) -> Any:
        from finetune_trainer.data.shards import Shards

        return Shards.open(self.config("train").layout.prepared)


def make(workload: Workload, data: Path | None) -> None:
    """Write model and rows, and run prepare on them. `data`: JSON Lines with question and answer, or None to make some up."""
    for claim in ("models", "datasets", "scratch"):
        (workload.folder / claim).mkdir(parents=True, exist_ok=True)
    rows = rows_of(data)
    path = workload.folder / "datasets" / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_model(workload.model, [row["prompt"] + row["completion"] for row in rows])
    config = workload.folder / "prepare.json"
    config.write_text(workload.config("prepare").encode())
    environment = os.environ | {
        "FINETUNE_SCRATCH": str(workload.folder / "scratch-prepare"),
        "FINETUNE_TERMINATION_LOG": str(workload.folder / "termination"),
        "FINETUNE_PROGRESS_PORT": "0",
    }
    subprocess.run(
        [sys.executable, "-m", "finetune_trainer", "prepare", "--config", str(config)], check=True, env=environment
    )


def rows_of(data: Path | None) -> list[dict[str, str]]:
    """Prompts and completions from a file of questions and answers, or made up."""
    return _read(data) if data is not None else _made_up()


def _read(path: Path) -> list[dict[str, str]]:
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path}: cannot be read as JSON Lines: {error}; name a file with DATA=") from error
    return [{"prompt": row["question"] + "\n", "completion": row["answer"]} for row in rows]


def _made_up() -> list[dict[str, str]]:
    """Questions and answers of mixed lengths, as chat data has them: log-normal, median 90 words."""
    draw = random.Random(0)
    syllables = ["ka", "to", "mi", "re", "lo", "su", "ven", "dar", "pil", "on", "est", "ur"]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(9000)]

    def text() -> str:
        return " ".join(draw.choices(words, k=max(4, min(400, round(draw.lognormvariate(3.8, 0.5))))))

    return [{"prompt": text() + "\n", "completion": text()} for _ in range(4000)]


def write_model(folder: Path, texts: list[str], *, vocabulary: int = VOCABULARY, shape: dict[str, Any] = SHAPE) -> None:
    """A tokenizer trained on `texts`, and random weights."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=["<pad>", "<end>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), eos_token_id=1, pad_token_id=0, **shape)).save_pretrained(
        folder
    )
