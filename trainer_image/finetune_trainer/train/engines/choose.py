"""The engine of a run's strategy."""

from __future__ import annotations

from finetune_api.spec import FineTuneJobSpec
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from finetune_trainer.errors import BadInput
from finetune_trainer.model import sharded
from finetune_trainer.model.streaming import Place
from finetune_trainer.train.engines.engine import Engine, Setting
from finetune_trainer.train.gang import Gang
from finetune_trainer.train.optimizers.choose import recipe_of
from finetune_trainer.train.optimizers.groups import groups


def place_of(spec: FineTuneJobSpec, gang: Gang) -> Place:
    """Where a rank keeps the weights that it loads, until `engine_of` takes them.

    Whole ones on its device where the forward wants them so; else its part of each, on the host if weights are offloaded.
    Where zero1 and zero2 train everything in bf16, whole weights are rounded, so that the exact ones come in parts as well.
    """
    compute = spec.compute
    rounded = (
        spec.training.precision == "bf16" and spec.method.type == "full" and compute.strategy in ("zero1", "zero2")
    )
    if compute.strategy not in ("zero3", "fsdp2") and not rounded:
        return lambda tensor: tensor.to(gang.device)
    offloaded = compute.offload is not None and compute.offload.parameters not in (None, "none")
    mesh = init_device_mesh("cpu" if offloaded else gang.device.type, (gang.world_size,))
    return lambda tensor: sharded.cut(tensor, mesh)


def engine_of(spec: FineTuneJobSpec, gang: Gang, net: nn.Module) -> Engine:
    """Wrap `net` (with what is to be trained requiring gradients) in the engine of `compute.strategy`. Its weights are placed as by `place_of`, or on the CPU.

    Raises BadInput (InvalidSpec) for an optimizer that cannot be sharded, or for what this machine lacks.
    """
    training, compute = spec.training, spec.compute
    setting = Setting(
        rank=gang.rank,
        world_size=gang.world_size,
        device=gang.device,
        bf16=training.precision == "bf16",
        max_grad_norm=training.max_grad_norm,
        ema=training.ema,
        offload=compute.offload,
    )
    strategy = compute.strategy or "ddp"
    kind = recipe_of(training.optimizer or "adamw", net)
    if strategy != "ddp" and not kind.elementwise:
        raise BadInput(
            f"spec.training.optimizer: the states of {kind.name} cannot be sharded by strategy {strategy}",
            code="InvalidSpec",
            remedy="take compute.strategy ddp, or optimizer adamw",
        )
    lora = spec.method.lora
    made = groups(
        ((name, p) for name, p in net.named_parameters() if p.requires_grad),
        weight_decay=training.weight_decay,
        plus_ratio=(lora.plus_ratio if lora is not None else None) or 1.0,
    )
    if strategy == "ddp":
        from finetune_trainer.train.engines.ddp import DdpEngine

        return DdpEngine(setting, net, kind, made)
    if strategy == "fsdp2":
        from finetune_trainer.train.engines.fsdp2 import Fsdp2Engine

        return Fsdp2Engine(setting, net, kind, made)
    if strategy == "zero3":
        from finetune_trainer.train.engines.zero3 import Zero3Engine

        return Zero3Engine(setting, net, kind, made)
    from finetune_trainer.train.engines.zero import FlatZeroEngine

    return FlatZeroEngine(setting, net, kind, made, stage=int(strategy.removeprefix("zero")))
