"""What tests of several rooms share: shards made by hand, tiny random models, and ranks that are one process."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Several test processes share the cores. numpy and torch read it as they load.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from finetune_trainer import sealed
from finetune_trainer.data.shards import FORMAT, KIND, SPLITS, Shards, SplitWriter
from finetune_trainer.data.stepplan import StepPlan, path_in
from hypothesis import HealthCheck, settings

# How long an example takes says what else the machine does.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

Row = tuple[Sequence[int], Sequence[int]] | tuple[Sequence[int], Sequence[int], int | Sequence[int]]
"""(prompt, answer), or of a classifier (text, its pair, label or labels), in token ids."""


def _write(
    folder: Path,
    *,
    task: str = "causal-lm",
    labels: Sequence[str] | None = None,
    multi_label: bool = False,
    pad: int = 0,
    stop: Sequence[int] = (1,),
    segments: bool = False,
    max_new_tokens: int = 8,
    **splits: Sequence[Row],
) -> Shards:
    first = next(rows for rows in splits.values() if rows)[:1]
    facts = {
        "kind": KIND,
        "format": FORMAT,
        "sources": ["rows.jsonl"],
        "digests": {"tokenizer": "t", "template": "c"},
        "tokenizer": {"pad": pad, "eos": stop[0] if stop else None, "stop": list(stop), "segments": segments},
        "resolved": {
            "task": task,
            "max_new_tokens": max_new_tokens,
            **({"labels": list(labels), "multi_label": multi_label} if labels else {}),
        },
    }
    kind: Any = None if labels is None else "several" if multi_label else "one"
    with sealed.sealing(folder, facts) as temporary:
        for split in SPLITS:
            with SplitWriter(temporary, split, labels=kind) as writer:
                for number, row in enumerate(splits.get(split, first)):
                    _append(writer, number, row, len(labels or ()), multi_label)
        sealed.write_json(path_in(temporary), StepPlan(1, 1, 1, "k").to_json())
    return Shards.open(folder)


def _append(writer: SplitWriter, number: int, row: Row, labels: int, multi_label: bool) -> None:
    prompt, answer = list(row[0]), list(row[1])
    learnt = np.arange(len(prompt) + len(answer)) >= len(prompt)
    label: Any = None
    if labels:
        learnt[:] = False
        label = np.isin(np.arange(labels), row[2]) if multi_label else row[2]
    writer.append([*prompt, *answer], learnt, prompt_length=len(prompt), source=(0, number + 1, 0, 1), label=label)


@pytest.fixture(scope="session")
def shards_in() -> Callable[..., Shards]:
    """shards_in(folder, train=[...], validation=[...], test=[...], task=, labels=, multi_label=, pad=, stop=, segments=, max_new_tokens=) -> Shards.

    A split that is not named has one row, the first of those that are.
    """
    return _write


@pytest.fixture
def make_shards(tmp_path: Path) -> Callable[..., Shards]:
    """As `shards_in`, in folders of its own."""
    numbers = itertools.count()
    return lambda **facts: _write(tmp_path / f"shards-{next(numbers)}", **facts)


class Rank:
    """Stands for `train.gang.Gang`: one of `world_size` ranks, whose collectives give what this rank alone brings."""

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        import torch

        self.rank, self.world_size = rank, world_size
        self.device = torch.device("cpu")
        self.is_first = rank == 0
        self.asked_to_stop = False

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def sums(self, values: list[float]) -> list[float]:
        return values

    def should_stop(self) -> bool:
        return self.asked_to_stop


@pytest.fixture
def make_rank() -> Callable[..., Rank]:
    """make_rank(rank, world_size); without arguments a gang of one."""
    return Rank


VOCABULARY = 61
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "initializer_range": 0.3,
}
_T5 = {
    "vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2,
    "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1, "dropout_rate": 0.0, "initializer_factor": 3.0,
}  # fmt: skip
_BART = {
    "vocab_size": VOCABULARY, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1, "decoder_start_token_id": 1, "forced_eos_token_id": 1,
    "init_std": 0.3, "dropout": 0.0,
}  # fmt: skip
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _SIZES),
    "gpt2": ("GPT2Config", {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "initializer_range": 0.3}),
    "bert": ("BertConfig", _SIZES | {"type_vocab_size": 2}),
    "t5": ("T5Config", _T5),
    "bart": ("BartConfig", _BART),
}  # fmt: skip


@pytest.fixture
def make_model() -> Callable[..., Any]:
    """make_model(name, task, **changes): the model that transformers makes for that task."""
    import torch
    import transformers

    classes = {
        "causal-lm": transformers.AutoModelForCausalLM,
        "seq2seq-lm": transformers.AutoModelForSeq2SeqLM,
        "sequence-classification": transformers.AutoModelForSequenceClassification,
    }

    def make(name: str, task: str, **changes: Any) -> Any:
        kind, sizes = CONFIGS[name]
        torch.manual_seed(0)
        return classes[task].from_config(getattr(transformers, kind)(**(sizes | changes))).eval()

    return make


@pytest.fixture
def with_adapter() -> Callable[..., Any]:
    """with_adapter(model, "prompt" | "prefix" | "lora", task): a peft model that differs from its base."""
    import peft
    import torch

    tasks = {
        "causal-lm": "CAUSAL_LM",
        "seq2seq-lm": "SEQ_2_SEQ_LM",
        "sequence-classification": "SEQ_CLS",
    }

    def adapt(model: Any, method: str, task: str) -> Any:
        kind = tasks[task]
        if method == "lora":
            config: Any = peft.LoraConfig(task_type=kind, r=4, target_modules="all-linear", init_lora_weights=False)
        elif method == "prompt":
            config = peft.PromptTuningConfig(
                task_type=kind, num_virtual_tokens=5, num_transformer_submodules=1, num_layers=2, token_dim=16
            )
        else:
            config = peft.PrefixTuningConfig(task_type=kind, num_virtual_tokens=5)
        torch.manual_seed(1)
        tuned = peft.get_peft_model(model, config)
        with torch.no_grad():
            for name, parameter in tuned.named_parameters():
                if "modules_to_save" in name:
                    parameter.add_(torch.randn_like(parameter))
        return tuned.eval()

    return adapt
