"""Each contender's own training, from the workload's model and rows, stepping through a `Pace`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.real_tokens import RealTokens
from benchmarks.trainer.pace import Finished, Pace
from benchmarks.trainer.workload import LEARNING_RATE, LORA, Workload

PER_DEVICE = 8
"""Rows in a micro-batch where a rival's default says so (TRL's and transformers' own)."""


def ours(workload: Workload, pace: Pace) -> None:
    """The train stage as an operator would run it."""
    from finetune_api.contract import Progress
    from finetune_trainer import train
    from finetune_trainer.errors import Stopped
    from finetune_trainer.progress import ProgressWriter
    from finetune_trainer.stage import StageContext
    from finetune_trainer.stop import StopFlag

    config = workload.config("train")
    shards = workload.shards()
    plan, lengths = shards.plan(), shards.train.lengths()
    stop = StopFlag()

    class Paced(ProgressWriter):
        """Told of every step, since the log interval of short trainings is one step."""

        def update(self, *, force: bool = False, **fields: Any) -> None:
            super().update(force=force, **fields)
            if stop.requested or not fields.get("step"):
                return
            try:
                pace.step(int(lengths[plan.rows(fields["step"] - 1)].sum()), fields.get("loss"))
            except Finished:
                stop.request()

    scratch = workload.folder / "scratch-ours"
    scratch.mkdir(exist_ok=True)
    config.layout.attempt(1).mkdir(parents=True, exist_ok=True)
    context = StageContext(config, Paced(scratch / "progress.json", Progress(stage="train")), stop, scratch)
    pace.begin()
    try:
        train.run(context)
    except Stopped:
        return


def transformers_trainer(workload: Workload, pace: Pace) -> None:
    """transformers.Trainer with padding to the longest row, all else at its defaults."""
    from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

    model = _model(workload)
    if workload.method == "lora":
        from peft import get_peft_model

        model = get_peft_model(model, _lora())
    tokenizer = AutoTokenizer.from_pretrained(workload.model)
    arguments = TrainingArguments(**_arguments(workload, PER_DEVICE))
    rows = _rows(workload)
    rows = rows.map(
        lambda row: {
            "labels": [
                token if counts else -100
                for token, counts in zip(row["input_ids"], row["completion_mask"], strict=True)
            ]
        },
        remove_columns=["completion_mask"],
    )
    _run(Trainer(model, arguments, train_dataset=rows, data_collator=DataCollatorForSeq2Seq(tokenizer)), pace)


def trl_defaults(workload: Workload, pace: Pace) -> None:
    """SFTTrainer untouched, but for float32, which all contenders have here."""
    _sft(workload, pace, per_device=PER_DEVICE)


_GROUPED = {
    "gradient_checkpointing": False,
    "train_sampling_strategy": "group_by_length",
    "logging_nan_inf_filter": False,
}


def trl_grouped(workload: Workload, pace: Pace) -> None:
    """Rows of similar length together, nothing computed twice, no check of the loss in between."""
    _sft(
        workload,
        pace,
        per_device=PER_DEVICE,
        **_GROUPED,
    )


def trl_grouped_nll(workload: Workload, pace: Pace) -> None:
    """The same with all logits at once, instead of a loss by chunks that computes them twice."""
    _sft(
        workload,
        pace,
        per_device=PER_DEVICE,
        **_GROUPED,
        loss_type="nll",
    )


def trl_packed(workload: Workload, pace: Pace) -> None:
    """Packing, best fit decreasing, into as many tokens as PER_DEVICE rows have."""
    lengths = workload.shards().train.lengths()
    tokens = round(float(lengths.mean()) * PER_DEVICE)
    _sft(
        workload,
        pace,
        per_device=1,
        gradient_accumulation_steps=workload.rows_per_step // PER_DEVICE,
        gradient_checkpointing=False,
        packing=True,
        max_length=max(tokens, int(lengths.max())),
        logging_nan_inf_filter=False,
    )


CONTENDERS: dict[str, Callable[[Workload, Pace], None]] = {
    "ours": ours,
    "trl": trl_defaults,
    "trl-grouped": trl_grouped,
    "trl-grouped-nll": trl_grouped_nll,
    "trl-packed": trl_packed,
    "transformers": transformers_trainer,
}


def _sft(workload: Workload, pace: Pace, *, per_device: int, **options: Any) -> None:
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(**(_arguments(workload, per_device) | options))
    trainer = SFTTrainer(
        str(workload.model),
        arguments,
        train_dataset=_rows(workload),
        processing_class=AutoTokenizer.from_pretrained(workload.model),
        peft_config=_lora() if workload.method == "lora" else None,
    )
    _run(trainer, pace)


def _run(trainer: Any, pace: Pace) -> None:
    """Count the real tokens of each micro-batch, and stop at the pace's word."""
    from transformers import TrainerCallback

    tokens = RealTokens(trainer)

    class Paced(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            pace.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            try:
                pace.step(tokens.taken())
            except Finished:
                control.should_training_stop = True

    trainer.add_callback(Paced())
    trainer.train()


def _arguments(workload: Workload, per_device: int) -> dict[str, Any]:
    return {
        "output_dir": str(Path(workload.folder) / "rivals"),
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": workload.rows_per_step // per_device,
        "max_steps": workload.steps,
        "learning_rate": LEARNING_RATE,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "torch_compile": workload.compile,
    }


def _model(workload: Workload) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(workload.model, dtype=torch.float32)


def _lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", r=LORA["rank"], lora_alpha=int(LORA["alpha"]), target_modules="all-linear")


def _rows(workload: Workload) -> Any:
    """The very rows that ours trains on."""
    from datasets import Dataset

    split = workload.shards().train
    return Dataset.from_dict(
        {
            "input_ids": [split.tokens(row).tolist() for row in range(split.rows)],
            "completion_mask": [split.mask(row).astype(int).tolist() for row in range(split.rows)],
        }
    )
