"""`make bench-quality`: a small base, trained here, is tuned on questions and answers; held-out loss before and after, and transformers.Trainer's beside it."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.report import Row, write
from benchmarks.trainer import workload

SHAPE = workload.SHAPE | {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
BATCH = 16
METHODS: dict[str, tuple[dict[str, Any], float]] = {
    "full": ({"type": "full"}, 1e-3),
    "lora": ({"type": "lora", "lora": {"rank": 16, "alpha": 32.0}}, 3e-3),
}
AGREES = 0.01
"""Nats a token."""


class Stages:
    """Our own stages, as processes, over claims in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, name: str, model: str, data: dict[str, Any], method: dict[str, Any], rate: float, steps: int) -> Path:
        """Prepare and train; the run's folder."""
        from finetune_api.contract import JobRef, RunConfig
        from finetune_api.effective import resolve
        from finetune_api.spec import FineTuneJobSpec

        spec = {
            "model": {"uri": f"pvc://models/{model}"},
            "method": method,
            "data": data,
            "training": {
                "maxSteps": steps,
                "globalBatchSize": BATCH,
                "learningRate": rate,
                "schedule": "constant",
                "warmupRatio": 0.0,
            },
            "checkpoint": {"everySteps": steps},
            "compute": {"device": "cpu", "strategy": "ddp"},
            "evaluation": {"metrics": ["loss"]},
            "workspace": {"uri": "pvc://scratch"},
            "output": {"uri": f"pvc://scratch/out/{name}"},
        }
        for stage in ("prepare", "train"):
            config = RunConfig(
                job=JobRef(name=name, namespace="bench", uid=name, run="bench"),
                stage=stage,  # type: ignore[arg-type]
                attempt=1,
                spec=resolve(FineTuneJobSpec.model_validate(spec), decided={}),
                claims_root=str(self.folder),
            )
            path = self.folder / f"{name}-{stage}.json"
            path.write_text(config.encode())
            own = {
                "FINETUNE_SCRATCH": str(self.folder / f"scratch-{name}-{stage}"),
                "FINETUNE_TERMINATION_LOG": str(self.folder / "termination"),
                "FINETUNE_PROGRESS_PORT": "0",
            }
            command = [sys.executable, "-m", "finetune_trainer", stage, "--config", str(path)]
            subprocess.run(command, check=True, env=os.environ | own)
        return config.layout.root


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="JSON Lines with question and answer; absent: made-up rows")
    parser.add_argument("--base-steps", type=int, default=200, help="steps that make the base out of random weights")
    parser.add_argument("--steps", type=int, default=120, help="steps of tuning")
    parser.add_argument("--held-out", type=int, default=300, help="rows that the loss is measured on")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        stages = _claims(folder, options.data, options.held_out)
        text = {
            "train": [{"uri": "pvc://datasets/text.jsonl"}],
            "split": {"train": 1.0, "validation": 0.0, "test": 0.0},
        }
        base = stages.run("base", "raw", text, {"type": "full"}, 1e-3, options.base_steps)
        shutil.copytree(base / "trained" / "model", folder / "models" / "base")
        pairs = {
            "train": [{"uri": "pvc://datasets/rows.jsonl"}],
            "test": [{"uri": "pvc://datasets/held-out.jsonl"}],
            "split": {"train": 1.0, "validation": 0.0, "test": 0.0},
        }
        for method, (described, rate) in METHODS.items():
            run = stages.run(method, "base", pairs, described, rate, options.steps)
            measured = json.loads((run / "trained" / "evaluation.json").read_text())["metrics"]
            mine = next(row for row in measured if row["metric"] == "loss")
            theirs = _transformers(folder, run, described, rate)
            print(
                f"\n{method}: held-out loss {mine['base']:.4f} -> {mine['tuned']:.4f}; transformers.Trainer {theirs[0]:.4f} -> {theirs[1]:.4f}\n",
                flush=True,
            )
            rows.append(
                Row(
                    f"held-out loss after {method} tuning",
                    mine["tuned"],
                    "nats/token",
                    f"within {AGREES}",
                    "lower",
                    "transformers",
                    theirs[1],
                )
            )
            rows.append(
                Row(
                    f"held-out loss, tuned over base, {method}",
                    mine["tuned"],
                    "nats/token",
                    "< base",
                    "lower",
                    "base",
                    mine["base"],
                )
            )
    write("quality", rows)


def _claims(folder: Path, data: Path | None, held_out: int) -> Stages:
    for claim in ("models", "datasets", "scratch"):
        (folder / claim).mkdir()
    rows = workload.rows_of(data)
    texts = [{"text": row["prompt"] + row["completion"]} for row in rows[: len(rows) // 2]]
    files = {"text": texts, "held-out": rows[-held_out:], "rows": rows[len(rows) // 2 : -held_out]}
    for name, content in files.items():
        (folder / "datasets" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    workload.write_model(folder / "models" / "raw", [row["text"] for row in texts], vocabulary=4096, shape=SHAPE)
    return Stages(folder)


def _transformers(folder: Path, run: Path, method: dict[str, Any], rate: float) -> tuple[float, float]:
    """Held-out loss before and after its own training on the same rows in the same order."""
    import torch
    from finetune_trainer.data.shards import Shards
    from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

    shards = Shards.open(run / "prepared")
    model = AutoModelForCausalLM.from_pretrained(folder / "models" / "base", dtype=torch.float32)
    if method["type"] == "lora":
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(42)
        lora = method["lora"]
        model = get_peft_model(
            model,
            LoraConfig(
                task_type="CAUSAL_LM", r=lora["rank"], lora_alpha=int(lora["alpha"]), target_modules="all-linear"
            ),
        )
    plan = shards.plan()
    order = [int(row) for step in range(plan.steps) for row in plan.rows(step)]
    arguments = TrainingArguments(
        output_dir=str(folder / "rival"),
        use_cpu=True,
        per_device_train_batch_size=BATCH,
        max_steps=plan.steps,
        learning_rate=rate,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    collate = DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(folder / "models" / "base"))
    before = _loss(model, shards.test, collate)
    rows = [_example(shards.train, row) for row in order]
    Trainer(model, arguments, train_dataset=rows, data_collator=collate).train()
    return before, _loss(model, shards.test, collate)


def _example(split: Any, row: int) -> dict[str, list[int]]:
    tokens = split.tokens(row).tolist()
    labels = [token if counts else -100 for token, counts in zip(tokens, split.mask(row), strict=True)]
    return {"input_ids": tokens, "labels": labels, "attention_mask": [1] * len(tokens)}


def _loss(model: Any, split: Any, collate: Any) -> float:
    """Mean over the trained tokens."""
    import torch

    model.eval()
    total = count = 0.0
    with torch.no_grad():
        for start in range(0, split.rows, BATCH):
            batch = collate([_example(split, row) for row in range(start, min(start + BATCH, split.rows))])
            tokens = int((batch["labels"][:, 1:] != -100).sum())
            total += float(model(**batch).loss) * tokens
            count += tokens
    return total / count


if __name__ == "__main__":
    main()
