"""Two ranks whose weights are sharded measure and answer: what each cell gave, beside what one process gives.

Run as a script by test_sharded.py: rank, folder of shards and results. Nothing is judged here.
"""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from finetune_trainer.data.shards import Shards
from finetune_trainer.evaluate import generate
from finetune_trainer.evaluate.nll import split_loss
from finetune_trainer.evaluate.untouched import untouched
from finetune_trainer.tasks.choose import task_of
from finetune_trainer.train.engines.engine import Setting
from finetune_trainer.train.engines.fsdp2 import Fsdp2Engine
from finetune_trainer.train.engines.zero3 import Zero3Engine
from finetune_trainer.train.optimizers.choose import recipe_of
from finetune_trainer.train.optimizers.groups import groups

ENGINES = {"zero3": Zero3Engine, "fsdp2": Fsdp2Engine}
CELLS = [
    ("zero3", "gpt2", "lora"),
    ("zero3", "t5", None),
    ("fsdp2", "gpt2", None),
    ("fsdp2", "t5", "lora"),
    ("fsdp2", "llama", "prompt"),
]
_VOCABULARY = 61


class Ranks:
    """The collectives of `train.gang.Gang` that measuring needs."""

    asked_to_stop = False
    device = torch.device("cpu")

    def __init__(self, *, alone: bool) -> None:
        self.rank, self.world_size = (0, 1) if alone else (dist.get_rank(), dist.get_world_size())

    def gather(self, value: Any) -> list[Any]:
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def sums(self, values: list[float]) -> list[float]:
        return [sum(column) for column in zip(*self.gather(values), strict=True)]

    def should_stop(self) -> bool:
        return False


def model_of(name: str, method: str | None) -> Any:
    """A tiny model, the same each time."""
    import peft
    import transformers

    torch.manual_seed(0)
    if name == "t5":
        model: Any = transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                vocab_size=_VOCABULARY, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, dropout_rate=0.0,
                decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, initializer_factor=3.0,
            )
        )  # fmt: skip
    elif name == "gpt2":
        model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=_VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=12, initializer_range=0.3,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            )
        )  # fmt: skip
    else:
        model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=_VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                num_attention_heads=2, max_position_embeddings=64, initializer_range=0.3,
            )
        )  # fmt: skip
    kind = "SEQ_2_SEQ_LM" if name == "t5" else "CAUSAL_LM"
    if method == "lora":
        lora = peft.LoraConfig(task_type=kind, r=4, target_modules="all-linear", init_lora_weights=False)
        return peft.get_peft_model(model, lora)
    if method == "prompt":
        return peft.get_peft_model(model, peft.PromptTuningConfig(task_type=kind, num_virtual_tokens=3))
    return model


def measured(ranks: Ranks, module: Any, shards: Shards, *, communicates: bool) -> dict[str, Any]:
    """Loss and answers; of the base under an adapter too."""
    task, rows = task_of(shards), range(shards.validation.rows)
    how = generate.Greedy(6, 0, (1,), communicates)
    nobody: Any = lambda *_: None  # noqa: E731

    def once() -> list[Any]:
        loss = split_loss(ranks, module, task, shards.validation, on_batch=nobody).loss
        answers = generate.answers(ranks, module, shards.validation, rows, how, on_token=nobody, on_batch=nobody)
        return [loss, [answers[row] for row in rows]]

    found = {"tuned": once()}
    if hasattr(module, "disable_adapter"):
        with untouched(module):
            found["base"] = once()
    return found


def cell(strategy: str, name: str, method: str | None, shards: Shards) -> dict[str, Any]:
    """What one process gives; and two ranks with gathered weights, and with sharded ones."""
    model = model_of(name, method)
    found = {"alone": measured(Ranks(alone=True), model, shards, communicates=False)}
    made = groups([(n, p) for n, p in model.named_parameters() if p.requires_grad], weight_decay=0.0, plus_ratio=1.0)
    setting = Setting(rank=dist.get_rank(), world_size=2, device=torch.device("cpu"), bf16=False, max_grad_norm=1.0)
    engine = ENGINES[strategy](setting, model, recipe_of("adamw", model), made)
    ranks = Ranks(alone=False)
    for when in (
        "gathered",
        "sharded",
    ):  # in this order: before the first forward DeepSpeed compares what it sees among ranks
        with engine.unsharded() if when == "gathered" else contextlib.nullcontext():
            found[f"{when} communicates"] = engine.module_communicates
            found[when] = measured(ranks, engine.module, shards, communicates=engine.module_communicates)
    return found


def main() -> None:
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    generate._BATCH_ROWS = 2  # of five rows the first rank gets two batches, the second one
    report = {}
    for strategy, name, method in CELLS:
        kind = "seq2seq-lm" if name == "t5" else "causal-lm"
        try:
            report[f"{strategy}/{name}/{method}"] = cell(strategy, name, method, Shards.open(folder / kind))
        except Exception:
            report[f"{strategy}/{name}/{method}"] = {"error": traceback.format_exc()}
    (folder / f"rank-{rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
