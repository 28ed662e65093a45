"""The engine of a run's strategy."""

from __future__ import annotations

from finetune_api.spec import FineTuneJobSpec
from torch import nn

from finetune_trainer.errors import BadInput
from finetune_trainer.train.engines.engine import Engine, Setting
from finetune_trainer.train.gang import Gang
from finetune_trainer.train.optimizers.choose import recipe_of
from finetune_trainer.train.optimizers.groups import groups


def engine_of(spec: FineTuneJobSpec, gang: Gang, net: nn.Module) -> Engine:
    """Wrap `net` (on the CPU, with what is to be trained requiring gradients) in the engine of `compute.strategy`.

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
