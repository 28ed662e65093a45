"""`spec` of a FineTuneJob. A field that is absent is decided for the user; `status.effective` shows what it became."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from finetune_api.base import ApiModel
from finetune_api.location import ClaimLocation, Location
from finetune_api.pods import Pods
from finetune_api.rules import Rule, Ruled, fixed

Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1, le=2**31 - 1)]

MethodType = Literal["lora", "full"]
DataFormat = Literal["messages", "prompt-completion", "instruction", "text"]
Strategy = Literal["ddp", "zero2"]
Metric = Literal["loss", "perplexity", "exact-match"]


class ModelSpec(Location):
    """The base model: a folder in Hugging Face layout on a claim, or a repository on a hub."""


class LoraSpec(ApiModel):
    """Low-rank adapters (https://arxiv.org/abs/2106.09685)."""

    rank: PositiveInt = Field(default=16, le=1024, description="Rank of the update, r.")
    alpha: Annotated[float, Field(gt=0, le=4096)] | None = Field(
        default=None, description="Scale: the update is multiplied by alpha / rank. Absent: 2 * rank."
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    target_modules: list[Annotated[str, Field(min_length=1, max_length=128)]] | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        description="Names of the linear layers that get adapters. Absent: every linear layer but the output head.",
    )


class MethodSpec(ApiModel, Ruled):
    """What is trained."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.type == 'lora' || !has(self.lora)",
            "method.lora belongs to method.type lora: remove it, or set type: lora",
            lambda self: self.type == "lora" or self.lora is None,
        ),
    )

    type: MethodType = Field(description="lora trains small adapters beside a frozen model; full trains every weight.")
    lora: LoraSpec | None = None


class SplitSpec(ApiModel, Ruled):
    """How `data.train` is divided when no validation or test data is named. A list that is named replaces its fraction."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.train + self.validation + self.test > 0.999 && self.train + self.validation + self.test < 1.001",
            "data.split: train, validation and test must add up to 1",
            lambda self: 0.999 < self.train + self.validation + self.test < 1.001,
        ),
    )

    train: float = Field(default=0.8, gt=0, le=1)
    validation: Fraction = 0.1
    test: Fraction = 0.1
    seed: int = Field(
        default=42, ge=0, le=2**31 - 1, description="Which rows go where depends on the rows and this seed alone."
    )


class ChecksSpec(ApiModel):
    """What the data must satisfy before anything is trained."""

    min_examples: PositiveInt = Field(default=1, description="Fewest valid training examples.")
    max_invalid_fraction: Fraction = Field(
        default=0.0, description="Share of rows that may be invalid; these are left out and listed in the report."
    )


class DataSpec(ApiModel, Ruled):
    """The examples: JSON Lines or JSON arrays."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.lossOn) || self.lossOn == 'all' || !has(self.format) || self.format != 'text'",
            "data.lossOn must be all (or absent) for data.format text: plain text has no answers to tell apart",
            lambda self: self.loss_on in (None, "all") or self.format != "text",
        ),
    )

    train: list[Location] = Field(
        min_length=1, max_length=32, description="Files with training examples, or folders of them."
    )
    validation: list[Location] | None = Field(default=None, min_length=1, max_length=32)
    test: list[Location] | None = Field(default=None, min_length=1, max_length=32)
    split: SplitSpec = Field(default_factory=SplitSpec)
    format: DataFormat | None = Field(default=None, description="Absent: recognised from the rows' fields.")
    loss_on: Literal["completion", "assistant", "all"] | None = Field(
        default=None,
        description="Which tokens are learnt: the last answer (completion), every assistant turn (assistant), or everything (all). Absent: assistant for messages, all for text, else completion.",
    )
    max_length: Annotated[int, Field(ge=8, le=2**20)] | None = Field(
        default=None, description="Longest row in tokens. Absent: the longest row, up to the model's context and 4096."
    )
    overlong: Literal["truncate", "drop"] | None = Field(
        default=None, description="What happens to longer rows; they are counted. Absent: truncate."
    )
    checks: ChecksSpec = Field(default_factory=ChecksSpec)


class TrainingSpec(ApiModel, Ruled):
    """Hyperparameters, by the names that Hugging Face gives them."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!(has(self.epochs) && has(self.maxSteps))",
            "training.epochs and training.maxSteps exclude each other: keep one",
            lambda self: self.epochs is None or self.max_steps is None,
        ),
    )

    epochs: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        default=None, description="Passes over the training data. Absent: 3, unless maxSteps is set."
    )
    max_steps: PositiveInt | None = Field(default=None, description="Optimizer steps.")
    global_batch_size: Annotated[int, Field(ge=1, le=65536)] | None = Field(
        default=None,
        description="Rows in one optimizer step, over all processes; the same at every world size. Absent: 16.",
    )
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="Peak learning rate. Absent: 2e-4 for lora, 2e-5 for full."
    )
    schedule: Literal["cosine", "linear", "constant"] | None = Field(
        default=None, description="Learning rate after warm-up. Absent: cosine."
    )
    warmup_ratio: Fraction | None = Field(
        default=None, description="Share of the steps in which the learning rate rises. Absent: 0.03."
    )
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    max_grad_norm: float = Field(default=1.0, gt=0, le=1000, description="Gradients are scaled down to this L2 norm.")
    precision: Literal["fp32", "bf16"] | None = Field(default=None, description="Absent: bf16 on GPUs, fp32 on CPUs.")
    seed: int = Field(default=42, ge=0, le=2**31 - 1)


class ComputeSpec(ApiModel, Ruled):
    """Where training runs: `nodes` pods, each with `processesPerNode` processes."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.device) || self.device != 'cpu' || !has(self.gpusPerNode) || self.gpusPerNode == 0",
            "compute.gpusPerNode must be 0 or absent when compute.device is cpu",
            lambda self: self.device != "cpu" or not self.gpus_per_node,
        ),
        Rule(
            "!has(self.device) || self.device != 'cuda' || !has(self.gpusPerNode) || self.gpusPerNode > 0",
            "compute.gpusPerNode must be at least 1 when compute.device is cuda; for training on CPUs set device: cpu",
            lambda self: self.device != "cuda" or self.gpus_per_node != 0,
        ),
        Rule(
            "!has(self.processesPerNode) || !has(self.gpusPerNode) || self.gpusPerNode == 0 || self.processesPerNode <= self.gpusPerNode",
            "compute.processesPerNode cannot be more than compute.gpusPerNode: each process needs a GPU of its own",
            lambda self: (
                not self.processes_per_node or not self.gpus_per_node or self.processes_per_node <= self.gpus_per_node
            ),
        ),
    )

    nodes: int = Field(default=1, ge=1, le=1024, description="Training pods.")
    gpus_per_node: Annotated[int, Field(ge=0, le=64)] | None = Field(
        default=None, description="GPUs of each training pod. Absent: 1 on cuda, 0 on cpu."
    )
    gpu_resource: str = Field(
        default="nvidia.com/gpu",
        max_length=128,
        pattern=r"^[a-z0-9.-]+/[A-Za-z0-9_.-]+$",
        description="Resource name of a GPU.",
    )
    device: Literal["cuda", "cpu"] | None = Field(
        default=None, description="Absent: cpu if gpusPerNode is 0, else cuda."
    )
    processes_per_node: Annotated[int, Field(ge=1, le=64)] | None = Field(
        default=None, description="Absent: one a GPU, or one on cpu."
    )
    strategy: Strategy | None = Field(
        default=None,
        description="ddp keeps everything on each process; zero2 shards gradients and optimizer states by DeepSpeed. Absent: zero2 if there are several processes.",
    )


class SchedulingSpec(ApiModel):
    """How the training pods get their place."""

    priority_class: str | None = Field(default=None, max_length=253, description="PriorityClass of the training pods.")


class CheckpointSpec(ApiModel):
    """How often training is saved. A stop or an eviction saves as well, whatever stands here."""

    every_steps: PositiveInt | None = Field(
        default=None, description="Absent: ten times over the training, at least every 500 steps."
    )
    keep: int = Field(default=2, ge=1, le=100, description="Newest checkpoints that are kept, beside the best one.")


class GenerationSpec(ApiModel):
    """Greedy generation for exact match and for the report's samples."""

    max_new_tokens: PositiveInt | None = Field(
        default=None, le=32768, description="Absent: the longest answer in the test data and 8 more, at most 512."
    )


class EvaluationSpec(ApiModel):
    """What is measured on the test split."""

    metrics: list[Metric] | None = Field(
        default=None,
        min_length=1,
        max_length=8,
        description="Absent: loss, perplexity and exact-match (text data: loss and perplexity).",
    )
    baseline: bool = Field(default=True, description="Measure the base model too, on the same rows.")
    generation: GenerationSpec = Field(default_factory=GenerationSpec)


class RetrySpec(ApiModel):
    """How often a stage is tried again after a failure that may pass. Bad input and divergence are never retried; a preempted job always goes on."""

    infra: int = Field(
        default=3, ge=0, le=100, description="Failures of unknown or infrastructure cause, over the whole job."
    )


_FROZEN_LOCATION = "has(self.{0}.revision) == has(oldSelf.{0}.revision) && (!has(self.{0}.revision) || self.{0}.revision == oldSelf.{0}.revision)"


def _fixed_location(name: str) -> Rule:
    """uri and revision are fixed; credentials and endpoint may be changed (a rotated Secret, a moved mirror)."""
    message = fixed(name, what=f"spec.{name}").message
    return Rule(f"self.{name}.uri == oldSelf.{name}.uri && {_FROZEN_LOCATION.format(name)}", message)


def _fixed_data() -> Rule:
    same = []
    for part in ("train", "validation", "test"):
        new, old = f"self.data.{part}", f"oldSelf.data.{part}"
        uris = f"{new}.map(l, l.uri) == {old}.map(l, l.uri) && {new}.map(l, has(l.revision) ? l.revision : '') == {old}.map(l, has(l.revision) ? l.revision : '')"
        same.append(uris if part == "train" else f"has({new}) == has({old}) && (!has({new}) || ({uris}))")
    for part, optional in (
        ("split", False),
        ("format", True),
        ("lossOn", True),
        ("maxLength", True),
        ("overlong", True),
        ("checks", False),
    ):
        new, old = f"self.data.{part}", f"oldSelf.data.{part}"
        same.append(f"has({new}) == has({old}) && (!has({new}) || {new} == {old})" if optional else f"{new} == {old}")
    return Rule(" && ".join(f"({part})" for part in same), fixed("data", what="spec.data").message)


class FineTuneJobSpec(ApiModel, Ruled):
    """What to fine-tune, on what, where, and where the result goes."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        _fixed_location("model"),
        fixed("method", what="spec.method"),
        _fixed_data(),
        fixed("training", what="spec.training"),
        fixed("evaluation", what="spec.evaluation"),
        _fixed_location("workspace"),
        _fixed_location("output"),
        fixed("managedBy", what="spec.managedBy"),
    )

    model: ModelSpec
    method: MethodSpec
    data: DataSpec
    training: TrainingSpec = Field(default_factory=TrainingSpec)
    compute: ComputeSpec = Field(default_factory=ComputeSpec)
    pods: Pods | None = None
    workspace: ClaimLocation = Field(
        description="Where shards and checkpoints lie while the job runs. With several nodes the claim must be ReadWriteMany."
    )
    scheduling: SchedulingSpec | None = None
    checkpoint: CheckpointSpec = Field(default_factory=CheckpointSpec)
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec)
    output: ClaimLocation = Field(
        description="Folder that will hold the tuned adapter or model, its card and its report."
    )
    retry: RetrySpec = Field(default_factory=RetrySpec)
    suspend: bool = Field(
        default=False, description="Stop with a checkpoint and give the GPUs back; false again goes on."
    )
    ready_when: Literal["Accepted", "Completed"] = Field(
        default="Accepted",
        description="When the Ready condition becomes True: Accepted suits GitOps, Completed suits pipelines.",
    )
    managed_by: str = Field(
        default="finetune.dev/operator",
        max_length=63,
        description="Who reconciles this job; another value makes this operator leave it alone.",
    )
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(
        default=None,
        description="Delete the finished job's pods, Jobs and ConfigMaps after this time; never the FineTuneJob itself.",
    )
    run_token: str | None = Field(
        default=None,
        max_length=63,
        description="Change it to run the job once more, from the start. It counts once the run under way has ended, and never cuts one short.",
    )
