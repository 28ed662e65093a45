"""The train stage from its first line to its last."""

from __future__ import annotations

import gc
import os
import time

import torch

from finetune_trainer import source, termination
from finetune_trainer.data.shards import Shards
from finetune_trainer.errors import PeerLost, StageError
from finetune_trainer.stage import StageContext
from finetune_trainer.train import ddp, handshake, model, result, zero2
from finetune_trainer.train.checkpoint import Checkpoint, CheckpointReader, CheckpointStore, sealed_folders
from finetune_trainer.train.engine import Engine
from finetune_trainer.train.fence import Fence
from finetune_trainer.train.gang import Gang, form
from finetune_trainer.train.history import History
from finetune_trainer.train.identity import config_hash
from finetune_trainer.train.loop import TrainLoop
from finetune_trainer.train.optimizer import adamw
from finetune_trainer.train.watchdog import Watchdog


def run_training(context: StageContext) -> None:
    """Raises StageError in all its kinds; returns when `trained/` is sealed."""
    config, spec, layout = context.config, context.config.spec, context.config.layout
    run_hash = config_hash(spec)
    if result.recorded(context, layout.trained, run_hash):
        return
    shards = Shards.open(layout.prepared)
    folder = source.local(spec.model, config, field="spec.model.uri")
    net = model.adapt(model.load(folder, spec), spec)
    trainable, total = model.count(net)
    gang, engine = _engine(context, net, trainable)

    store, best = None, None

    def take_over() -> tuple[Checkpoint | None, Checkpoint | None]:
        nonlocal store
        existing = [(path.name, manifest.get("attempt", 0)) for path, manifest in sealed_folders(layout.checkpoints)]
        fence = Fence.take(layout.fence, config.attempt, existing)
        store = CheckpointStore(layout.checkpoints, fence, run_hash, keep=spec.checkpoint.keep)
        return store.newest_whole(lambda line: print(line, flush=True)), store.best()

    resumed, best = gang.on_first(take_over)
    if resumed is not None:
        engine.restore(CheckpointReader(resumed.folder), resumed.step)
        context.note(step=resumed.step, resumed_from_step=resumed.step, last_checkpoint=resumed.status())
        context.progress.update(
            step=resumed.step, resumed_from_step=resumed.step, last_checkpoint=resumed.status(), force=True
        )
    attempt = layout.attempt(config.attempt)
    watchdog = Watchdog(attempt / f"stacks-rank-{gang.rank}.txt", lambda seconds: _hung(context, seconds))
    history = History(attempt if gang.is_first else None)
    loop = TrainLoop(context, gang, engine, shards, store, history, watchdog, best=best)
    _greet(context, gang, engine, shards, loop, resumed, run_hash)
    if gang.is_first:
        _introduce(context, engine, gang, trainable, total, resumed)
    gc.collect()
    gc.freeze()
    gc.enable()
    context.stop.ready()
    loop.run(resumed)


def _engine(context: StageContext, net: torch.nn.Module, trainable: int) -> tuple[Gang, Engine]:
    """Meet the gang, and wrap the model in the engine of the strategy."""
    training, compute = context.config.spec.training, context.config.spec.compute
    zero = compute.strategy == "zero2"
    plan = zero2.config(
        trainable=trainable,
        max_grad_norm=training.max_grad_norm,
        bf16=training.precision == "bf16",
        cuda=compute.device == "cuda",
    )
    accelerator, gang = form(context, deepspeed=plan if zero else None)
    optimizer = adamw(
        ((name, p) for name, p in net.named_parameters() if p.requires_grad),
        learning_rate=training.learning_rate or 0.0,
        weight_decay=training.weight_decay,
    )
    if zero:
        return gang, zero2.Zero2Engine(accelerator, net, optimizer)
    return gang, ddp.DdpEngine(accelerator, net, optimizer, max_grad_norm=training.max_grad_norm)


def _greet(
    context: StageContext,
    gang: Gang,
    engine: Engine,
    shards: Shards,
    loop: TrainLoop,
    resumed: Checkpoint | None,
    run_hash: str,
) -> None:
    plan = shards.plan()
    step = min(resumed.step if resumed else 0, plan.steps - 1)
    hello = handshake.Hello(
        rank=gang.rank,
        world_size=int(os.environ["WORLD_SIZE"]),
        engine=engine.name,
        config=run_hash,
        plan=plan.key,
        weights=handshake.weights_digest(engine.module),
        rows=tuple(loop.first_rows(step)),
    )
    handshake.shake(gang, hello, strategy=context.config.spec.compute.strategy or "ddp", step_rows=plan.rows(step))


def _introduce(
    context: StageContext, engine: Engine, gang: Gang, trainable: int, total: int, resumed: Checkpoint | None
) -> None:
    spec = context.config.spec
    print(
        f"{engine.name} over {gang.world_size} rank{'s' * (gang.world_size > 1)}: strategy {spec.compute.strategy}, {spec.training.precision} on {gang.device.type}, "
        f"{spec.method.type}: {trainable:,} of {total:,} parameters train"
        + (f"; resumes from step {resumed.step}" if resumed else ""),
        flush=True,
    )


def _hung(context: StageContext, seconds: float) -> None:
    """From the watchdog's thread: this rank leaves, so that its peers see it and the operator restarts the gang."""
    error: StageError = PeerLost(
        f"no progress on rank {context.rank} for {seconds:.0f} s; every thread's stack is in attempt-{context.config.attempt}/stacks-rank-{context.rank}.txt",
        code="Hang",
    )
    record = termination.outcome_of(error, known=context.known, stage="train", rank=context.rank, now=time.time())
    termination.write_record(context.scratch, record)
    os._exit(record.exit_code)
