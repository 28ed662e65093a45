"""`spec.training`: hyperparameters, by the names that Hugging Face gives them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from finetune_api.base import ApiModel
from finetune_api.data import Fraction
from finetune_api.evaluation import Metric
from finetune_api.rules import Rule, Ruled

OptimizerName = Literal["adamw", "adamw-8bit", "paged-adamw", "paged-adamw-8bit", "adafactor", "muon"]
ScheduleName = Literal["cosine", "linear", "constant", "wsd"]
ActivationCheckpointing = Literal["none", "selective", "full"]


class EarlyStoppingSpec(ApiModel):
    """When training has become as good as it gets. The best checkpoint, which is what is measured and published, is chosen by the same metric."""

    metric: Metric | None = Field(default=None, description="Measured on the validation split. Absent: loss.")
    patience: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        default=None, description="Stop after so many validations without a better value. Absent: never."
    )
    min_delta: float = Field(default=0.0, ge=0, le=1e6, description="How much better counts as better.")


class TrainingSpec(ApiModel, Ruled):
    """Hyperparameters, by the names that Hugging Face gives them."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!(has(self.epochs) && has(self.maxSteps))",
            "training.epochs and training.maxSteps exclude each other: keep one",
            lambda self: self.epochs is None or self.max_steps is None,
        ),
        Rule(
            "!has(self.decayRatio) || (has(self.schedule) && self.schedule == 'wsd')",
            "training.decayRatio belongs to training.schedule wsd: remove it, or set schedule: wsd",
            lambda self: self.decay_ratio is None or self.schedule == "wsd",
        ),
    )

    epochs: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        default=None, description="Passes over the training data. Absent: by the number of rows."
    )
    max_steps: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = Field(default=None, description="Optimizer steps.")
    global_batch_size: Annotated[int, Field(ge=1, le=65536)] | None = Field(
        default=None,
        description="Rows in one optimizer step, over all processes; the same at every world size. Absent: by the number of rows.",
    )
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="Peak learning rate. Absent: by method and model.",
    )
    schedule: ScheduleName | None = Field(
        default=None,
        description="Learning rate after warm-up; wsd is constant and then falls linearly to 0. Absent: cosine.",
    )
    warmup_ratio: Fraction | None = Field(
        default=None, description="Share of the steps in which the learning rate rises. Absent: 0.03 to 0.1."
    )
    decay_ratio: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="Share of the steps in which schedule wsd falls. Absent: 0.2."
    )
    optimizer: OptimizerName | None = Field(
        default=None, description="8-bit and paged ones are bitsandbytes'; paging needs a GPU. Absent: adamw."
    )
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="Not applied to biases and norms.")
    max_grad_norm: float = Field(default=1.0, gt=0, le=1000, description="Gradients are scaled down to this L2 norm.")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="Share of the target that all labels divide.")
    neftune_alpha: Annotated[float, Field(gt=0, le=1000)] | None = Field(
        default=None,
        description="Noise on the embeddings in training (https://arxiv.org/abs/2310.05914). Absent: none.",
    )
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="Decay of an exponential moving average of the trained weights, which is then what is measured and published. Absent: none.",
    )
    precision: Literal["fp32", "bf16"] | None = Field(default=None, description="Absent: bf16 on GPUs, fp32 on CPUs.")
    activation_checkpointing: ActivationCheckpointing | None = Field(
        default=None,
        description="Compute activations again instead of keeping them: all of a layer (full), or all but its attention (selective). Absent: as memory needs it.",
    )
    compile: bool = Field(default=False, description="torch.compile of each layer: minutes at start, then faster.")
    deterministic: bool = Field(default=False, description="Only kernels whose results never vary.")
    early_stopping: EarlyStoppingSpec | None = None
    seed: int = Field(default=42, ge=0, le=2**31 - 1)
