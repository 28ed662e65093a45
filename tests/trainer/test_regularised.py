"""Labels are smoothed where something is learnt, and averages are what is measured and published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer.tasks.causal import CausalTask
from finetune_trainer.train.checkpoint import CheckpointReader
from safetensors.torch import load_file

from .conftest import STEPS


@pytest.fixture(scope="module")
def job(make_job) -> Any:
    """Of each loss that was taken: whether the model was training, the smoothing, and the size of its trained weights."""
    training = {
        "maxSteps": STEPS, "globalBatchSize": 8, "learningRate": 0.01, "warmupRatio": 0.1,
        "labelSmoothing": 0.1, "ema": 0.9,
    }  # fmt: skip
    job = make_job("regularised", training=training, evaluation={"baseline": False, "metrics": ["loss"]})
    job.taken = []
    loss = CausalTask.loss

    def recorded(self: Any, model: Any, batch: Any, *, label_smoothing: float = 0.0) -> Any:
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        job.taken.append((model.training, label_smoothing, size(trained)))
        return loss(self, model, batch, label_smoothing=label_smoothing)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CausalTask, "loss", recorded)
        job.here()
    return job


def test_labels_are_smoothed_in_training_alone(job: Any) -> None:
    assert {smoothing for training, smoothing, _ in job.taken if training} == {0.1}
    assert {smoothing for training, smoothing, _ in job.taken if not training} == {0.0}


def test_averages_are_validated_and_published(job: Any) -> None:
    best = json.loads((job.folder / "trained" / "manifest.json").read_text())["best"]["step"]
    checkpoint = job.folder / "checkpoints" / f"step-{best}"
    weights, averages = stored(checkpoint, "weights"), stored(checkpoint, "ema")
    assert size(weights) != pytest.approx(size(averages), rel=1e-6)
    measured = [value for training, _, value in job.taken if not training]
    assert size(averages) == pytest.approx(min(measured, key=lambda value: abs(value - size(averages))), rel=1e-9)
    assert size(weights) not in [pytest.approx(value, rel=1e-6) for value in measured]
    published = load_file(job.folder / "trained" / "model" / "adapter_model.safetensors")
    assert {tensor.shape for tensor in published.values()} == {tensor.shape for tensor in averages.values()}
    assert size(published) == pytest.approx(size(averages), rel=1e-9)


def stored(checkpoint: Path, kind: str) -> dict[str, torch.Tensor]:
    reader = CheckpointReader(checkpoint)
    keys = [key.partition("/") for key in json.loads((checkpoint / "index.json").read_text())]
    return {name: reader(kind, name).view(reader.weights()[name].shape) for one, _, name in keys if one == kind}


def size(tensors: dict[str, torch.Tensor]) -> float:
    return float(sum(tensor.detach().double().abs().sum() for tensor in tensors.values()))
