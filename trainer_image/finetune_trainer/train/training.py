"""The train stage from its first line to its last."""

from __future__ import annotations

import gc
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from finetune_api.planner.facts import Measured, PlanFacts

from finetune_trainer import sources, termination, throughput
from finetune_trainer.data.digests import template_digest, tokenizer_digest
from finetune_trainer.data.shards import Shards
from finetune_trainer.data.tokenizer import load_tokenizer, settle, template_of
from finetune_trainer.errors import PeerLost, StageError
from finetune_trainer.evaluate.stage import Evaluation
from finetune_trainer.model import load as model
from finetune_trainer.model import streaming
from finetune_trainer.model.adapt import adapt
from finetune_trainer.model.purpose import Purpose
from finetune_trainer.model.speed import speed_up
from finetune_trainer.stage import StageContext
from finetune_trainer.tasks import probes
from finetune_trainer.tasks.choose import task_of
from finetune_trainer.train import handshake, result, saving, shortage, trained
from finetune_trainer.train.checkpoint import Checkpoint, CheckpointReader, CheckpointStore, sealed_folders
from finetune_trainer.train.determinism import only_deterministic_kernels
from finetune_trainer.train.engines.choose import engine_of, place_of
from finetune_trainer.train.engines.engine import Engine
from finetune_trainer.train.engines.room import returning_host_memory
from finetune_trainer.train.fence import Fence
from finetune_trainer.train.gang import Gang, form
from finetune_trainer.train.history import History, eval_name
from finetune_trainer.train.identity import config_hash, same_training
from finetune_trainer.train.loop import TrainLoop
from finetune_trainer.train.reporting import TRAIN_SHARE, Pace
from finetune_trainer.train.watchdog import Watchdog

_STACKS_SECONDS = 1.0


def run_training(context: StageContext) -> None:
    """Raises StageError in all its kinds; returns when `trained/` is sealed."""
    config, spec, layout = context.config, context.config.spec, context.config.layout
    run_hash = config_hash(spec)
    if spec.training.deterministic:
        only_deterministic_kernels()
    folder = sources.local(spec.model, config, field="spec.model.uri")
    trusted = spec.model.trust_remote_code
    tokenizer = load_tokenizer(folder, field="spec.model.uri", template=spec.data.template, trust_remote_code=trusted)
    shards = Shards.open(
        layout.prepared,
        tokenizer_digest=tokenizer_digest(tokenizer),
        template_digest=template_digest(template_of(tokenizer), spec.data.template_arguments),
    )
    settle(tokenizer, shards.task, shards.tokenizer["vocab_size"])
    context.progress.update(total_steps=shards.plan().steps, force=True)
    gang = form(context)
    with returning_host_memory(), shortage.explaining(context, "loading the model"):
        net, loaded = _net(context, gang, folder, shards, tokenizer)
    trainable, total = model.count(net)
    gang.barrier()  # ranks may read at very different speeds, and collectives of the device wait for less time
    speed_up(net, spec, gang.device)
    with returning_host_memory(), shortage.explaining(context, "placing the model"):
        engine = engine_of(spec, gang, net)
    verified: set[Path] = set()
    store, resumed, best = _take_over(context, gang, run_hash, verified)
    if resumed is not None:
        engine.restore(CheckpointReader(resumed.folder), resumed.step)
        gang.barrier()  # reading takes each rank its own time
        engine.refresh()
    attempt = layout.attempt(config.attempt)
    with Watchdog(termination.stacks_path(attempt, gang.rank), lambda seconds: _hung(context, seconds)) as watchdog:
        history = History(attempt if gang.is_first else None)
        task = task_of(shards)
        ways = probes.settle(task, engine.module, spec, gang, longest=shards.resolved["max_length"])
        loop = TrainLoop(context, gang, engine, shards, task, store, history, watchdog, best=best, tokenizer=tokenizer)
        evaluation = Evaluation(context, gang, shards, task, watchdog)
        _greet(context, gang, engine, shards, loop, resumed, run_hash, loaded)
        if gang.is_first:
            _introduce(context, engine, gang, shards, trainable, total, resumed)
            for line in ways:
                _say(line)
        gc.collect()
        gc.freeze()
        gc.enable()
        context.stop.ready()
        if spec.method.type == "full" and resumed is None:
            with shortage.explaining(context, "measuring the base"), engine.unsharded():
                evaluation.base_before_training(engine.module, module_communicates=engine.module_communicates)
        last = loop.run(resumed)
        best = saving.whole(gang, CheckpointStore.best, store, verified, say=_say, paused=watchdog.paused)
        if best is None:
            raise StageError("training ended, but its last checkpoint is gone from the workspace")
        if best.step != last or resumed is not None or spec.training.ema:
            with watchdog.paused():
                engine.load(CheckpointReader(best.folder).measured)
                gang.barrier()
                engine.refresh()
        if gang.is_first and evaluation.measures:
            _say(f"measuring on {shards.test.rows} test rows with the weights of step {best.step}")
        with shortage.explaining(context, "the evaluation"), engine.unsharded():
            measured = evaluation.run(
                engine.module,
                tokenizer,
                share=(100 * TRAIN_SHARE, 99.0),
                module_communicates=engine.module_communicates,
            )
        with watchdog.paused():
            module = engine.whole()  # the weights are read from the checkpoint and the model's folder
        gang.on_first(lambda: _finish(context, store, module, best, tokenizer, measured), paused=watchdog.paused)
        with watchdog.paused():
            if gang.is_first and resumed is None:
                _remember_speed(context, shards, loop.pace)
            gang.barrier()


def _net(
    context: StageContext, gang: Gang, folder: Path, shards: Shards, tokenizer: Any
) -> tuple[torch.nn.Module, str]:
    """The model in `folder`, with what `spec.method` says trainable, and a digest of all that it was made of."""
    config, spec = context.config, context.config.spec
    earlier = spec.method.init_from
    adapter = sources.local(earlier, config, field="spec.method.initFrom.uri") if earlier else None
    purpose = Purpose.of(shards.resolved, pad=shards.tokenizer["pad"])
    place = place_of(spec, gang)
    base = model.load(folder, spec, purpose, device=gang.device, place=place, adapter=adapter)
    net = adapt(base, spec, tokenizer=tokenizer, adapter=adapter)
    return net, streaming.digest(net, [folder] if adapter is None else [folder, adapter])


def _finish(
    context: StageContext,
    store: CheckpointStore | None,
    module: torch.nn.Module,
    best: Checkpoint,
    tokenizer: Any,
    measured: dict[str, Any] | None,
) -> None:
    """On rank 0: seal what publish needs, and say how it went."""
    assert store is not None
    assert measured is not None
    metrics = {"best_step": float(best.step)} | {
        name: value
        for name, value in (("best_eval_loss", best.eval_loss), (f"best_{eval_name(best.metric)}", best.value))
        if value is not None
    }
    context.note(evaluation=trained.status_of(measured), metrics=context.known.get("metrics", {}) | metrics)
    result.seal(
        context,
        store.fence,
        module=module,
        best=best,
        tokenizer=tokenizer,
        evaluation=measured,
    )
    context.progress.update(percent=100.0, eta_seconds=0.0, force=True)
    for row in measured["metrics"]:
        values = "  ".join(f"{name} {row[name]:.4f}" for name in ("base", "tuned") if name in row)
        print(f"test {row['metric']}  {values}", flush=True)


def _remember_speed(context: StageContext, shards: Shards, pace: Pace) -> None:
    """For the next plan of such a training. One that was interrupted is no measure."""
    facts = shards.manifest.get("facts")
    if facts is None or pace.tokens_per_second is None or pace.startup_seconds is None:
        return
    whole = time.monotonic() - context.began
    measured = Measured(
        tokens_per_second=pace.tokens_per_second,
        startup_seconds=pace.startup_seconds,
        evaluation_seconds=max(0.0, whole - pace.startup_seconds - pace.step_seconds),
    )
    throughput.remember(context.config, PlanFacts.model_validate(facts), measured)


def _take_over(
    context: StageContext, gang: Gang, run_hash: str, verified: set[Path]
) -> tuple[CheckpointStore | None, Checkpoint | None, Checkpoint | None]:
    """Hold the fence and look at what is there: the store (rank 0), the checkpoint to resume from, and the best one."""
    config, layout = context.config, context.config.layout
    store: CheckpointStore | None = None

    def act() -> None:
        nonlocal store
        existing = [(path.name, manifest.get("attempt", 0)) for path, manifest in sealed_folders(layout.checkpoints)]
        fence = Fence.take(layout.fence, config.attempt, existing)
        store = CheckpointStore(
            layout.checkpoints,
            fence,
            run_hash,
            keep=config.spec.checkpoint.keep,
            resumable=same_training(config.spec),
        )
        for leftover in layout.root.glob(".*.tmp-*"):  # of an attempt that was killed while it sealed
            shutil.rmtree(leftover, ignore_errors=True)

    gang.on_first(act)
    resumed = saving.whole(gang, CheckpointStore.newest, store, verified, say=_say)
    best = gang.on_first(lambda: store.best() if store else None)
    if resumed is not None:
        status = resumed.status()
        context.note(step=resumed.step, resumed_from_step=resumed.step, last_checkpoint=status)
        context.progress.update(step=resumed.step, resumed_from_step=resumed.step, last_checkpoint=status, force=True)
    return store, resumed, best


def _say(line: str) -> None:
    print(line, flush=True)


def _greet(
    context: StageContext,
    gang: Gang,
    engine: Engine,
    shards: Shards,
    loop: TrainLoop,
    resumed: Checkpoint | None,
    run_hash: str,
    loaded: str,
) -> None:
    plan = shards.plan()
    step = min(resumed.step if resumed else 0, plan.steps - 1)
    hello = handshake.Hello(
        rank=gang.rank,
        world_size=int(os.environ["WORLD_SIZE"]),
        engine=engine.name,
        config=run_hash,
        plan=plan.key,
        weights=loaded,
        rows=tuple(loop.first_rows(step)),
    )
    handshake.shake(gang, hello, strategy=context.config.spec.compute.strategy or "ddp", step_rows=plan.rows(step))


def _introduce(
    context: StageContext,
    engine: Engine,
    gang: Gang,
    shards: Shards,
    trainable: int,
    total: int,
    resumed: Checkpoint | None,
) -> None:
    spec, plan = context.config.spec, shards.plan()
    print(
        f"{engine.name} over {gang.world_size} rank{'s' * (gang.world_size > 1)}: strategy {spec.compute.strategy}, {spec.training.precision} on {gang.device.type}, "
        f"{spec.method.type}: {trainable:,} of {total:,} parameters train; {plan.steps} steps of {plan.global_batch_size} rows, {plan.steps / plan.steps_per_epoch:.3g} epochs"
        + (f"; resumes from step {resumed.step}" if resumed else ""),
        flush=True,
    )


def _hung(context: StageContext, seconds: float) -> None:
    """From the watchdog's thread: this rank leaves, so that its peers see it and the operator restarts the gang."""
    context.alarm()
    time.sleep(_STACKS_SECONDS)  # the others tell where they are, before they notice that this one is gone
    error: StageError = PeerLost(
        f"no progress on rank {context.rank} for {seconds:.0f} s; the stacks of all ranks are in attempt-{context.config.attempt}/stacks-rank-*.txt",
        code="Hang",
    )
    record = termination.outcome_of(error, known=context.known, stage="train", rank=context.rank, now=time.time())
    termination.write_record(context.scratch, record)
    os._exit(record.exit_code)
