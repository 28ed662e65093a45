"""One rank of a stage, in a process of its own: runs the stage and leaves its last word for PID 1."""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import importlib
import logging
import os
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import TextIO

from finetune_api.contract import ExitCode, Progress, RunConfig

from finetune_trainer import lean, progress, stop, termination
from finetune_trainer.errors import StageError, Stopped
from finetune_trainer.settled import settle
from finetune_trainer.stage import StageContext
from finetune_trainer.stop import StopFlag

_PR_SET_PDEATHSIG = 1


def main(stage: str, config_path: str, folder: str) -> None:
    """Never returns: the interpreter's teardown, with its threads and process groups, is not waited for."""
    _die_with_parent()
    faulthandler.enable()
    _quiet()
    rank = int(os.environ["RANK"])
    stacks = _stacks_on_request(Path(folder), rank)
    config = settle(RunConfig.read(config_path))
    context = StageContext(
        config=config,
        progress=progress.ProgressWriter(
            Path(folder) / progress.FILE if rank == 0 else None,
            Progress(stage=config.stage, attempt=config.attempt, world_size=int(os.environ["WORLD_SIZE"])),
        ),
        stop=StopFlag(),
        scratch=Path(folder),
        rank=rank,
        local_rank=int(os.environ["LOCAL_RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        alarm=lambda: os.kill(os.getppid(), stop.STACKS),
    )
    context.stop.install(
        lambda: _leave(context, Stopped("stopped on request before there was anything to save", code="Stopped"), stacks)
    )
    gc.disable()  # importing makes hundreds of thousands of objects that live for ever; the stage enables it again
    try:
        if stage == "train":
            lean.spare_bitsandbytes(config)
        importlib.import_module(f"finetune_trainer.{stage}").run(context)
    except BaseException as error:
        _leave(context, error, stacks)
    _leave(context, None, stacks)


def _leave(context: StageContext, error: BaseException | None, stacks: TextIO) -> None:
    """Write the record and end this process, from whatever thread."""
    record = termination.outcome_of(
        error, known=context.known, stage=context.config.stage, rank=context.rank, now=time.time()
    )
    if error is not None and not isinstance(error, StageError):
        traceback.print_exception(error)
    if record.exit_code == ExitCode.PEER_LOST:  # whoever looks for the cause wants to see what all the others did
        traceback.print_exception(error, file=stacks, chain=False)
        faulthandler.dump_traceback(stacks, all_threads=True)
    try:
        termination.write_record(context.scratch, record)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(record.exit_code)


def _stacks_on_request(folder: Path, rank: int) -> TextIO:
    """Until here PID 1's signal is blocked, as PID 1 left it. The handler is C: it answers from within a library's call."""
    file = termination.stacks_path(folder, rank).open("w", buffering=1)
    faulthandler.register(stop.STACKS, file=file, all_threads=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {stop.STACKS})
    return file


def _die_with_parent() -> None:
    """Where PID 1 is an ordinary process (local runs), its end must end us too."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _quiet() -> None:
    """Libraries speak when something is wrong; what is going on is told by the stage itself."""
    warnings.simplefilter("ignore")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    logging.getLogger("finetune").setLevel(logging.INFO)
    for name in ("transformers", "accelerate", "peft", "DeepSpeed", "torch", "bitsandbytes.backends"):
        logging.getLogger(name).setLevel(logging.ERROR)


if __name__ == "__main__":
    main(*sys.argv[1:])
