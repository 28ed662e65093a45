"""Who trains: ours by its engine, task and packing; TRL by its SFTTrainer. Both start from the model they are given."""

from __future__ import annotations

import functools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.gpu.cases import Case
from benchmarks.real_tokens import RealTokens

LORA = {"rank": 16, "alpha": 32}
LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class Window:
    """Some steps: how long they took, their real tokens, the lengths of rows like them, and the most memory that was allocated meanwhile."""

    seconds: float
    tokens: int
    lengths: np.ndarray
    peak_bytes: int


def adapted(model: nn.Module, case: Case) -> nn.Module:
    if case.method == "full":
        return model.requires_grad_(True)
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="CAUSAL_LM", r=LORA["rank"], lora_alpha=LORA["alpha"], target_modules="all-linear")
    return get_peft_model(model, config)


def ours(
    model: nn.Module, case: Case, split: Any, steps: list[np.ndarray], device: torch.device, *, compile: bool
) -> Iterator[None]:
    """Yields after each step, which the device may still be at."""
    from finetune_api.compute import MICRO_BATCH_TOKENS
    from finetune_trainer.model.compile import blocks_of
    from finetune_trainer.model.speed import speed_up
    from finetune_trainer.tasks import probes
    from finetune_trainer.tasks.causal import CausalTask
    from finetune_trainer.train import micro_batches
    from finetune_trainer.train.engines.choose import engine_of

    gang: Any = Alone(device)
    spec = spec_of(case.method, device, compile=compile)
    net = adapted(model, case).train()
    speed_up(net, spec, device)
    engine = engine_of(spec, gang, net)
    task = CausalTask(pad=0)
    lengths = split.lengths()
    for sentence in probes.settle(task, engine.module, spec, gang, longest=int(lengths.max())):
        print(f"ours: {sentence}", flush=True)
    for rows in steps:
        order = rows[np.lexsort((rows, -lengths[rows]))]
        parts = micro_batches.cut(order, lengths, MICRO_BATCH_TOKENS[device.type], packed=task.packs)
        makers = [functools.partial(task.collate, split, part) for part in parts]
        engine.accumulate(makers, task.loss, 1.0 / max(1, task.weight(split, rows)))
        engine.step(LEARNING_RATE)
        yield
    for block in blocks_of(net):
        block._compiled_call_impl = None  # the next contender finds the model as it was
    if case.method != "full":
        net.unload()


def spec_of(method: str, device: torch.device, *, compile: bool = False) -> Any:
    from finetune_api.effective import resolve
    from finetune_api.spec import FineTuneJobSpec

    place = {"uri": "pvc://claim/x"}
    return resolve(
        FineTuneJobSpec.model_validate(
            {
                "model": place,
                "method": {"type": method},
                "data": {"train": [place], "packing": True},
                "training": {"learningRate": LEARNING_RATE, "compile": compile},
                "compute": {"device": device.type, "strategy": "ddp"},
                "workspace": place,
                "output": place,
            }
        ),
        decided={},
    )


@dataclass(frozen=True)
class Alone:
    """A gang of one."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    def gather(self, value: Any) -> list[Any]:
        return [value]


def trl(
    model: nn.Module,
    case: Case,
    split: Any,
    steps: list[np.ndarray],
    device: torch.device,
    *,
    tuned: bool,
    on_step: Callable[[int], None],
) -> None:
    """SFTTrainer at its defaults (but the same rows a step), or packed by best fit and with nothing computed twice."""
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    rows = np.concatenate(steps)
    data = Dataset.from_dict(
        {
            "input_ids": [split.tokens(int(row)).tolist() for row in rows],
            "completion_mask": [split.mask(int(row)).astype(int).tolist() for row in rows],
        }
    )
    a_step = len(rows) / len(steps)
    options: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": max(1, round(a_step / 8)),
        "max_length": case.pack,
    }
    if tuned:
        options |= {
            "packing": True,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": case.packs,
            "gradient_checkpointing": False,
            "logging_nan_inf_filter": False,
        }
        if attention := os.environ.get("TRL_ATTENTION"):  # a FlashAttention that this machine has; else sdpa
            model.set_attn_implementation(attention)
    arguments = SFTConfig(
        output_dir=tempfile.gettempdir(),
        use_cpu=device.type == "cpu",
        bf16=device.type == "cuda",
        max_steps=len(steps),
        learning_rate=LEARNING_RATE,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **options,
    )
    words = Tokenizer(WordLevel({"<pad>": 0, "<end>": 1}, unk_token="<pad>"))

    class Told(TrainerCallback):
        def on_step_end(self, *args: Any, **_: Any) -> None:
            on_step(tokens.taken())

    net = adapted(model, case).train()
    trainer = SFTTrainer(
        net,
        arguments,
        train_dataset=data,
        processing_class=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>"),
        callbacks=[Told()],
    )
    tokens = RealTokens(trainer)
    trainer.train()


def now(device: torch.device) -> float:
    """Seconds, when the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
