"""transformers.Trainer, on the same rows in the same order, learns the same."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from finetune_trainer.data.shards import Shards
from finetune_trainer.train.step import Stepper
from torch.utils._python_dispatch import TorchDispatchMode

STEPS, ROWS = 50, 8
TRAINING = {
    "maxSteps": STEPS,
    "globalBatchSize": ROWS,
    "schedule": "constant",
    "warmupRatio": 0.0,
}
NOISE = 2e-3
"""Largest difference of two losses of about 5 nats, after fifty steps of float32 rounding."""
METHODS = {"full": {"type": "full"}, "lora": {"type": "lora", "lora": {"rank": 4}}}
RATES = {"full": 0.003, "lora": 0.005}


@pytest.fixture(scope="module", params=METHODS)
def job(request: pytest.FixtureRequest, make_job: Callable[..., Any]) -> Any:
    """Trained in this process. `first`: the model before its first step; `reads`: how often each step read a number from a tensor."""
    job = make_job(f"oracle-{request.param}", method=METHODS[request.param])
    job.spec |= {"training": TRAINING | {"learningRate": RATES[request.param]}, "checkpoint": {"everySteps": STEPS}}
    shutil.rmtree(job.folder / "prepared")
    job.run("prepare")
    job.reads = []
    with pytest.MonkeyPatch.context() as patch:
        take = Stepper.take

        def counted(stepper: Stepper, *args: Any) -> Any:
            if not job.reads:
                job.first = copy.deepcopy(stepper._engine.module)
            with Reads() as reads:
                result = take(stepper, *args)
            job.reads.append(reads.count)
            return result

        patch.setattr(Stepper, "take", counted)
        job.here()
    return job


class Reads(TorchDispatchMode):
    """Counts what would make the host wait for a device: numbers and truths read from tensors."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.name().split(".")[0] == "aten::_local_scalar_dense"
        return func(*args, **(kwargs or {}))


def test_curve_is_that_of_transformers_trainer(job: Any) -> None:
    mine = np.array([job.losses(1)[step] for step in range(1, STEPS + 1)])
    theirs = np.array(_trainer_losses(job))
    assert mine[0] == pytest.approx(theirs[0], abs=1e-5)
    assert np.abs(mine - theirs).max() < NOISE
    assert mine[-10:].mean() < mine[:10].mean() - 0.03, "something was learnt"


def test_a_step_reads_nothing_from_the_device(job: Any) -> None:
    assert len(job.reads) == STEPS
    assert set(job.reads) == {0}


def _trainer_losses(job: Any) -> list[float]:
    """Loss of each step of transformers.Trainer from the same first weights."""
    from transformers import Trainer, TrainingArguments

    shards = Shards.open(job.folder / "prepared")
    losses: list[float] = []

    class Noting(Trainer):
        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = super().training_step(*args, **kwargs)
            losses.append(float(loss))
            return loss

    rows = [_row(shards, int(row)) for step in range(STEPS) for row in shards.plan().rows(step)]
    arguments = TrainingArguments(
        output_dir=str(job.folder.parent / "rival"),
        use_cpu=True,
        per_device_train_batch_size=ROWS,
        max_steps=STEPS,
        learning_rate=job.spec["training"]["learningRate"],
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    Noting(job.first, arguments, train_dataset=rows, data_collator=_padded).train()
    return losses


def _row(shards: Shards, row: int) -> dict[str, torch.Tensor]:
    tokens = torch.from_numpy(shards.train.tokens(row).astype(np.int64))
    return {"input_ids": tokens, "labels": tokens.where(torch.from_numpy(shards.train.mask(row).copy()), -100)}


def _padded(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    def pad(name: str, value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True, padding_value=value)

    mask = [{"attention_mask": torch.ones_like(row["input_ids"])} for row in rows]
    ones = torch.nn.utils.rnn.pad_sequence([row["attention_mask"] for row in mask], batch_first=True)
    return {"input_ids": pad("input_ids", 0), "attention_mask": ones, "labels": pad("labels", -100)}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
