"""Peak memory of one process of a training, by part: what the trainer really holds at the moment when it holds most.

Four moments are compared: the end of a micro-batch's forward (all activations, and the logits of one chunk), the backward
of its last layer, the end of the backward (all gradients), and the optimizer's step. Sources of the terms: what autograd
saves in transformers' eager code, layer by layer (docs/planning.md), the constants of the trainer's own modules, and
measurements by `make bench-plan`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from finetune_api.compute import OffloadSpec
from finetune_api.planner import parameters
from finetune_api.planner.activations import Activations, activations, is_mixed, low_of, reached, stream_of
from finetune_api.planner.facts import PlanFacts
from finetune_api.planner.parameters import Parameters
from finetune_api.planner.share import Share, device_of, of_step, processes
from finetune_api.spec import FineTuneJobSpec

LOGITS_IN_A_CHUNK = {"cpu": 1 << 21, "cuda": 1 << 28}
"""The trainer's: elements of the largest logits that exist at once (tasks.fused_loss)."""
HELD_GRADIENT_BYTES = 2 << 30
"""The trainer's: up to this size whole gradients are kept until the last micro-batch (train.engines)."""
_BUCKET_ELEMENTS = 200_000_000
"""DeepSpeed's largest bucket (train.engines.zero)."""
_LIVE_ELEMENTS = 1_000_000_000
"""DeepSpeed's default: up to so many weights stay gathered between forward and backward (stage3_max_live_parameters)."""
_CONTEXT = int(1.1 * 2**30)
"""CUDA's context, modules, and workspaces of cuBLAS and cuDNN."""
_NCCL = 512 * 2**20
STAGED_BYTES = 64 << 20
"""The trainer's: larger checkpoints are copied to the host's memory and written from there (train.saving)."""
_FRAGMENTATION = {"cpu": (0.02, 0.33), "cuda": (0.05, 0.0)}
"""Of all that is allocated, and of activations and logits beside: what the allocator cannot use. PyTorch's with expandable
segments; glibc's, whose heap keeps the holes between activations (docs/planning.md)."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Bytes by part: every field is one."""

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))

    def parts(self) -> dict[str, int]:
        """By name, those that are not 0."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name))}


@dataclass(frozen=True, slots=True)
class Memory(Parts):
    """Bytes on the device of one process, at the peak. `copies` are those of weights in bf16 that autocast makes for one forward."""

    weights: int = 0
    quantization: int = 0
    gradients: int = 0
    optimizer: int = 0
    copies: int = 0
    activations: int = 0
    logits: int = 0
    buffers: int = 0
    context: int = 0
    fragmentation: int = 0


@dataclass(frozen=True, slots=True)
class _Job:
    """What every term is made of. `low` is the size of an element in what the forward computes, `held` of a frozen weight."""

    spec: FineTuneJobSpec
    facts: PlanFacts
    count: Parameters
    share: Share
    ranks: int
    device: str
    strategy: str
    low: int
    held: int

    @property
    def sharded(self) -> bool:
        return self.strategy in ("zero3", "fsdp2")

    @property
    def offload(self) -> OffloadSpec:
        return self.spec.compute.offload or OffloadSpec()


def memory_of(spec: FineTuneJobSpec, facts: PlanFacts) -> Memory:
    """Of a job whose strategy and checkpointing are decided."""
    job = _job(spec, facts)
    acts = activations(spec, facts, job.share)
    weights, constants = _weights(job)
    base = {"weights": weights, "quantization": constants, "optimizer": _optimizer(job), "buffers": _buffers(job)}
    gradients, early = _gradients(job)
    peak = max(
        (base | moment for moment in _moments(job, acts, gradients, early)), key=lambda moment: sum(moment.values())
    )
    always, beside = _FRAGMENTATION[job.device]
    wasted = int(always * sum(peak.values()) + beside * (peak["activations"] + peak["logits"]))
    context = _CONTEXT + (_NCCL if job.ranks > 1 else 0) if job.device == "cuda" else 0
    return Memory(**peak, context=context, fragmentation=wasted)


def _job(spec: FineTuneJobSpec, facts: PlanFacts) -> _Job:
    device = device_of(spec)
    return _Job(
        spec=spec,
        facts=facts,
        count=parameters.count(spec, facts.model, labels=facts.data.labels),
        share=of_step(spec, facts),
        ranks=processes(spec),
        device=device,
        strategy=spec.compute.strategy or "ddp",
        low=low_of(spec),
        held=held_of(spec),
    )


def held_of(spec: FineTuneJobSpec) -> int:
    """Bytes of an element of a frozen weight. Full fine-tuning keeps all in fp32."""
    return 2 if low_of(spec) == 2 and spec.method.type != "full" else 4


def _weights(job: _Job) -> tuple[int, int]:
    """Weights as the forward finds them, and the constants of quantised ones."""
    model, count = job.facts.model, job.count
    trained = count.trainable
    if job.spec.method.type == "qlora":
        return _quantized(job)
    frozen = count.total - trained
    rounded = job.low == 2 and job.strategy.startswith("zero")  # DeepSpeed's forward has a copy of its own
    whole = job.held * frozen + (2 if rounded else 4) * trained
    if job.sharded:
        kept = 0 if job.offload.parameters in ("cpu", "nvme") else whole // job.ranks
        if job.strategy == "fsdp2" and "cpu" in (job.offload.parameters, job.offload.optimizer):
            kept = 0
        live = max(parameters.layer(model) * 2, parameters.outside(model) + parameters.layer(model))
        if job.strategy == "zero3":
            live = max(live, min(count.total, _LIVE_ELEMENTS))
        return kept + job.low * live, 0
    return whole, 0


def _quantized(job: _Job) -> tuple[int, int]:
    """4 bits: half a byte and a scale for each block of 64, of 8 bits with double quantisation and of 32 without
    (https://arxiv.org/abs/2305.14314, section 3); 8 bits: a byte, and a float for each row. Tables, heads and norms stay whole."""
    model, count = job.facts.model, job.count
    quantization = job.spec.method.quantization
    bits = quantization.bits if quantization is not None else 4
    double = quantization is None or quantization.double_quant is not False
    linear = parameters.linear(model)
    whole = job.held * (model.parameters - linear) + 4 * count.trainable
    if bits == 8:
        return linear + whole, 4 * linear // max(model.hidden_size, 1)
    return linear // 2 + whole, int(linear / 64 * (1 + 4 / 256 if double else 4))


def _optimizer(job: _Job) -> int:
    """States, fp32 masters beside rounded weights, and the moving average."""
    trained, model = job.count.trainable, job.facts.model
    name = job.spec.training.optimizer or "adamw"
    each: float = {"adamw": 8, "adamw-8bit": 2.06, "paged-adamw": 8, "paged-adamw-8bit": 2.06, "muon": 4}.get(name, 8)
    if name == "adafactor":
        each = 4 * 2 / max(1, model.hidden_size)
    if name.startswith("paged") and job.device == "cuda":
        each = 0  # the driver moves it to the host when memory is short
    if job.spec.training.ema:
        each += 4
    if job.strategy in ("zero1", "zero2", "zero3"):
        each += 4  # the master, a slice
    if job.strategy == "ddp":
        total = each * trained
        if name == "muon":
            total += 4 * parameters.outside(model)
        return int(total)
    if job.offload.optimizer in ("cpu", "nvme") or (job.strategy == "fsdp2" and job.offload.parameters == "cpu"):
        return 0
    return int(each * trained / job.ranks)


def _gradients(job: _Job) -> tuple[int, int]:
    """Of the whole step, and those that are there while the forward of its last micro-batch runs."""
    whole, ranks = 4 * job.count.trainable, job.ranks
    holds = whole <= HELD_GRADIENT_BYTES
    sharded = whole // ranks
    if job.strategy == "ddp":
        early = whole if job.share.count > 1 or ranks > 1 else 0  # DDP's buckets stay
        return whole, early
    if job.strategy == "zero1" or holds:
        flat = sharded if job.strategy == "zero3" else 0  # its slices of the gradients, beside them
        return whole + flat, whole if job.share.count > 1 else 0
    if job.strategy == "fsdp2" and "cpu" in (job.offload.parameters, job.offload.optimizer):
        sharded = 0
    return sharded, sharded if job.share.count > 1 else 0


def _buffers(job: _Job) -> int:
    """Of communication, and of a checkpoint on its way."""
    if not job.strategy.startswith("zero"):
        return _staging(job)
    bucket = 4 * min(job.count.trainable, _BUCKET_ELEMENTS)
    return bucket * (2 if job.device == "cuda" else 1) + _staging(job)


def _staging(job: _Job) -> int:
    """What a rank owns of a checkpoint on its way to the disk, where the host's memory is what training is done in."""
    size = checkpoint_of(job.spec, job.count.trainable)
    return size // job.ranks if job.device == "cpu" and size > STAGED_BYTES else 0


def checkpoint_of(spec: FineTuneJobSpec, trained: int) -> int:
    """Bytes of a checkpoint: weights, their average, and the optimizer's states, all in fp32. Adafactor's are vectors."""
    states = {"adafactor": 0, "muon": 1}.get(spec.training.optimizer or "adamw", 2)
    return 4 * (1 + states + (1 if spec.training.ema else 0)) * trained


def _moments(job: _Job, acts: Activations, gradients: int, early: int) -> list[dict[str, int]]:
    logits, kept = _logits(job)
    copies, layer = _copies(job)
    once_more = job.facts.model.tied or job.share.count > 1  # else the table's gradient is the one that is kept
    table = 4 * parameters.table(job.facts.model) if _trains_table(job) and once_more else 0
    if job.sharded and gradients < 4 * job.count.trainable:
        table = table // job.ranks
    working = 8 * parameters.table(job.facts.model) if job.spec.training.optimizer == "adafactor" else 0
    none = {"activations": 0, "logits": 0, "copies": 0}
    return [
        {"activations": acts.saved, "logits": logits, "copies": copies, "gradients": early},
        {"activations": acts.saved + acts.layer, "logits": kept, "copies": max(copies, layer), "gradients": early},
        none | {"activations": acts.layer, "copies": layer, "gradients": gradients + table},
        none | {"gradients": gradients, "optimizer": _optimizer(job) + working},
        *([none | {"gradients": 4 * job.count.trainable}] if job.device == "cpu" else []),
    ]


def _copies(job: _Job) -> tuple[int, int]:
    """Rounded copies of weights that autocast makes, kept for the backward: of all layers, and of one.

    Of those that linear layers have: products over groups of tokens, as experts are, take weights as they are. A layer
    whose activations are computed again makes its copies again too.
    """
    model = job.facts.model
    if job.low == 4 or job.strategy != "ddp":
        return 0, 0
    depth = model.layers + model.encoder_layers
    layer = 2 * parameters.linear(model) // depth if is_mixed(job.spec) else 2 * job.count.added // depth
    again = (job.spec.training.activation_checkpointing or "none") != "none"
    return 0 if again else layer * reached(job.spec, model), layer


def _logits(job: _Job) -> tuple[int, int]:
    """While they exist, and what stays of them until the backward: gradients of hidden states and of a trained head.

    Of a chunk: the product, in bf16 its copy in fp32, and the logarithms; then the gradient, and in bf16 its part of the
    head's gradient.
    """
    model, k = job.facts.model, job.share.trained
    if job.facts.task == "sequence-classification" or not parameters.generates(model):
        return 16 * job.share.rows * max(1, job.facts.data.labels), 0
    if job.facts.task == "seq2seq-lm":  # the library makes all of them, and a copy in fp32
        return 12 * k * model.vocab_size, 0
    elements = min(k, max(1, LOGITS_IN_A_CHUNK[job.device] // model.vocab_size)) * model.vocab_size
    stream, table, trains = stream_of(job.spec), parameters.table(model), _trains_head(job)
    kept = stream * k * model.hidden_size + (4 * table if trains else 0)
    if job.low == 4:
        return 8 * elements + stream * k * model.hidden_size + kept, kept
    chunk = max(10 * elements, 8 * elements + 2 * table if trains else 0)
    rounded = 2 * (table + k * model.hidden_size) if is_mixed(job.spec) else 0
    return chunk + rounded + stream * k * model.hidden_size + kept, kept


def _trains_head(job: _Job) -> bool:
    """Whether the output head's weight gets a gradient."""
    method = job.spec.method
    if method.type == "full":
        return not (method.freeze is not None and method.freeze.all_but_last is not None and job.facts.model.tied)
    return "lm_head" in ((method.lora.modules_to_save if method.lora else None) or ())


def _trains_table(job: _Job) -> bool:
    """Whether the embeddings get a gradient, which is made whole before it is added."""
    freeze = job.spec.method.freeze
    return job.spec.method.type == "full" and not (freeze is not None and freeze.all_but_last is not None)
