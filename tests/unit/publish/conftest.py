"""A finished run as prepare and train leave it, small and whole, and with whatever a test wants otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetune_api.contract import RunConfig
from finetune_api.effective import resolve
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer import sealed

PREPARED: dict[str, Any] = {
    "kind": "shards",
    "format": 1,
    "sources": ["pvc://datasets/support.jsonl"],
    "digests": {"data": "d" * 64, "tokenizer": "t" * 64, "template": "c" * 64, "renderer": 1, "code": "k" * 64},
    "tokenizer": {"pad": 0, "eos": 4, "bos": None, "stop": [4, 7], "vocab_size": 100},
    "model": {"type": "llama", "parameters": 8030261248, "context_length": 4096},
    "resolved": {
        "format": "messages", "loss_on": "assistant", "max_length": 512, "global_batch_size": 16, "steps": 300,
        "epochs": 3.0, "checkpoint_every_steps": 30, "validate_every_steps": 30, "max_new_tokens": 120,
    },
    "counts": {
        "train": {"rows": 1600, "tokens": 201_000, "trained_tokens": 90_000, "longest": 512},
        "validation": {"rows": 200, "tokens": 25_000, "trained_tokens": 11_000, "longest": 480},
        "test": {"rows": 200, "tokens": 25_100, "trained_tokens": 11_100, "longest": 511},
    },
    "lengths": [[20, 5], [30, 40], [48, 100], [80, 400], [120, 700], [240, 500], [448, 200], [496, 55]],
    "invalid": [],
    "notes": ["The format messages was recognised from the rows' fields."],
    "data": {
        "format": "messages", "rows": 2000, "invalidRows": 0, "trainRows": 1600, "validationRows": 200, "testRows": 200,
        "tokens": 201_000, "trainedTokens": 90_000, "maxLength": 512, "truncatedRows": 0, "droppedRows": 0, "digest": "d" * 64,
    },
    "plan": {"steps": 300, "epochs": 3.0, "tokens": 603_000, "globalBatchSize": 16, "checkpointEverySteps": 30, "validateEverySteps": 30, "maxNewTokens": 120},
}  # fmt: skip
EVALUATION: dict[str, Any] = {
    "rows": 200,
    "generatedRows": 200,
    "metrics": [
        {"metric": "loss", "base": 2.31, "tuned": 0.87},
        {"metric": "perplexity", "base": 10.07, "tuned": 2.39},
        {"metric": "exact-match", "base": 0.11, "tuned": 0.64},
    ],
    "samples": [
        {
            "source": "pvc://datasets/support.jsonl:17",
            "prompt": "Where is my order 4711?",
            "reference": "Your order 4711 left our house on Monday.",
            "base": "I am sorry, I cannot help with that.",
            "tuned": "Your order 4711 left our warehouse on Monday.",
        }
    ],
    "notes": [],
}


BEST: dict[str, Any] = {"step": 270, "metric": "loss", "value": 0.8754}
CLASSIFIER: dict[str, Any] = {
    "spec": {
        "model": {"uri": "hf://google-bert/bert-base-uncased", "revision": "0123456789abcdef0123456789abcdef01234567"},
        "method": {"type": "lora"},
        "training": {"earlyStopping": {"metric": "f1", "patience": 3}},
    },
    "prepared": {
        "resolved": {
            **PREPARED["resolved"], "task": "sequence-classification", "format": "classification", "loss_on": None,
            "labels": ["delivery", "repair", "returns"], "multi_label": False,
        },
        "data": {"format": "classification"},
    },
    "evaluation": {
        "rows": 200,
        "metrics": [
            {"metric": "loss", "base": 1.12, "tuned": 0.31},
            {"metric": "accuracy", "base": 0.33, "tuned": 0.9},
            {"metric": "f1", "base": 0.2, "tuned": 0.88},
        ],
        "samples": [
            {"source": "pvc://d/t.jsonl:3", "prompt": "My chain fell off.", "reference": "repair", "base": "returns", "tuned": "repair"},
            {"source": "pvc://d/t.jsonl:9", "prompt": "Where is my parcel?", "reference": "delivery", "base": "returns", "tuned": "returns"},
        ],
        "notes": ["the base was measured with the classification head that training began with"],
    },
    "best": {"step": 120, "metric": "f1", "value": 0.87},
}  # fmt: skip
"""Arguments of make_run for a classifier that stopped early."""


def classifier_history() -> list[dict[str, Any]]:
    lines = [line for line in history(1, 210) if line["step"] <= 210]
    for line in lines:
        if "eval_loss" in line:
            line["eval_f1"] = 0.87 - abs(line["step"] - 120) / 300
    return [
        *lines,
        {"step": 210, "stopped_early": "f1 has not improved since step 120 (0.8700) in 3 validations", "time": 1.8e9},
    ]


def history(first: int, last: int, *, start: float = 2.3, time: float = 1.8e9) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for step in range(first, last + 1):
        loss = 0.8 + (start - 0.8) * 0.985**step
        if step % 5 == 0 or step == first:
            lines.append({"step": step, "epoch": step / 100, "loss": loss, "learning_rate": 2e-4 * (1 - step / 301), "grad_norm": 1.0, "tokens_per_second": 9e3, "time": time + step})  # fmt: skip
        if step % 30 == 0:
            lines.append({"step": step, "eval_loss": loss + 0.05, "time": time + step})
    return lines


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunConfig]:
    """make_run(prepared=, evaluation=, histories={attempt: lines}, spec=, job=) seals both folders and gives the publish stage's config."""

    def make(
        *,
        prepared: dict[str, Any] | None = None,
        evaluation: dict[str, Any] | None = None,
        histories: dict[int, list[dict[str, Any]]] | None = None,
        spec: dict[str, Any] | None = None,
        job: dict[str, str] | None = None,
        files: dict[str, str] | None = None,
        best: dict[str, Any] | None = None,
    ) -> RunConfig:
        claims = tmp_path / "claims"
        for name in ("scratch", "models", "datasets"):
            (claims / name).mkdir(parents=True, exist_ok=True)
        wanted = {
            "model": {"uri": "pvc://models/base"},
            "method": {"type": "lora"},
            "data": {"train": [{"uri": "pvc://datasets/support.jsonl"}]},
            "workspace": {"uri": "pvc://scratch"},
            "output": {"uri": "pvc://models/support-bot"},
            **(spec or {}),
        }
        config = RunConfig(
            job={"name": "support-bot", "namespace": "team-a", "uid": "uid-1", "run": "abcde", **(job or {})},
            stage="publish",
            attempt=1,
            spec=resolve(FineTuneJobSpec.model_validate(wanted), decided={}),
            claims_root=str(claims),
        )
        layout = config.layout
        data = {**PREPARED["data"], **(prepared or {}).get("data", {})}
        with sealed.sealing(layout.prepared, {**PREPARED, **(prepared or {}), "data": data}):
            pass
        trained = {"kind": "trained", "format": 1, "job": config.job.uid, "best": best or BEST}
        with sealed.sealing(layout.trained, trained) as folder:
            (folder / "model").mkdir()
            for name, text in (
                files or {"adapter_config.json": "{}", "adapter_model.safetensors": "weights", "tokenizer.json": "{}"}
            ).items():
                (folder / "model" / name).write_text(text)
            sealed.write_json(folder / "evaluation.json", EVALUATION if evaluation is None else evaluation)
        for number, lines in (histories if histories is not None else {1: history(1, 300)}).items():
            layout.attempt(number).mkdir(parents=True, exist_ok=True)
            (layout.attempt(number) / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return config

    return make
