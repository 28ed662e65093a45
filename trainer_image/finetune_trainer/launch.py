"""PID 1 of a stage's pod: starts the workers, serves their progress, forwards a stop, and exits with the gang's verdict.

It imports no torch, so that it is up at once and answers while workers are busy. There are no restarts here: a rank that
fails ends its gang, and the operator decides what comes next.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from finetune_api.contract import (
    ENV_PROGRESS_PORT,
    ENV_SCRATCH,
    PROGRESS_PORT,
    SCRATCH,
    Cause,
    ExitCode,
    RunConfig,
    TerminationMessage,
)
from finetune_api.status import Stage
from pydantic import ValidationError

from finetune_trainer import environment, progress, stop, termination
from finetune_trainer.errors import BadInput, StageError, accessing
from finetune_trainer.settled import settle

GRACE_SECONDS = 20.0
"""How long peers of a failed rank may take to notice it themselves before they are killed."""

_LONGEST_LINE_BYTES = 64 * 1024


def main(stage: Stage, config_path: str) -> int:
    """Run one stage to its end. Returns the exit code, which the termination message explains."""
    signal.pthread_sigmask(
        signal.SIG_BLOCK, (*stop.SIGNALS, stop.STACKS)
    )  # until somebody can act on them; workers inherit this
    try:
        config = _read(config_path, stage)
        place = environment.place(config)
        folder = _scratch(stage, place.node)
        log_folder = _log_folder(config) if stage == "train" else None
    except (StageError, OSError) as error:
        return _end(termination.outcome_of(error, known={}, stage=stage, rank=0, now=time.time()))
    try:
        server = progress.ProgressServer(
            folder / progress.FILE, config, int(os.environ.get(ENV_PROGRESS_PORT) or PROGRESS_PORT)
        )
    except OSError as error:
        print(f"progress is not served: {error.strerror}", flush=True)
        server = None
    with contextlib.closing(server) if server else contextlib.nullcontext():
        gang = Gang(config, config_path, place, folder, log_folder)
        return _end(gang.run())


def _end(message: TerminationMessage) -> int:
    termination.write_message(message)
    if message.cause is not None:
        word = "stopped" if message.outcome == "stopped" else message.cause.code
        print(f"{message.stage} {word}: {message.cause.message}", flush=True)
        if message.cause.remedy:
            print(f"  to do: {message.cause.remedy}", flush=True)
    return message.exit_code


def _read(path: str, stage: Stage) -> RunConfig:
    try:
        config = RunConfig.read(path)
    except OSError as error:
        raise BadInput(f"{path}: the run config cannot be read: {error.strerror}", code="InvalidSpec") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadInput(f"{path}: {where}: {first['msg']}", code="InvalidSpec") from error
    if config.stage != stage:
        raise BadInput(f"{path} is a run config of stage {config.stage}, not {stage}", code="InvalidSpec")
    return settle(config)


def _scratch(stage: Stage, node: int) -> Path:
    """An empty folder of this pod's own, for records, caches and HOME."""
    wanted = os.environ.get(ENV_SCRATCH) or (SCRATCH if os.access(SCRATCH, os.W_OK) else None)
    base = Path(wanted) if wanted else Path(tempfile.mkdtemp(prefix="finetune-"))
    folder = base / f"{stage}-{node}"
    shutil.rmtree(folder, ignore_errors=True)
    environment.make_folders(folder)
    return folder


def _log_folder(config: RunConfig) -> Path:
    folder = config.layout.attempt(config.attempt)
    with accessing("spec.workspace.uri", config.spec.workspace.uri):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@dataclass
class Worker:
    """One rank's process, its output, and how it ended (`status`: exit code, or minus the signal)."""

    rank: int
    process: subprocess.Popen[bytes]
    log: IO[bytes] | None
    prefix: bytes
    buffer: bytearray = field(default_factory=bytearray)
    status: int | None = None
    ended: float = 0.0
    killed: bool = False

    def feed(self, data: bytes) -> None:
        """Pass on whole lines, prefixed."""
        self.buffer += data
        *lines, rest = self.buffer.split(b"\n")
        self.buffer = bytearray(rest)
        if len(rest) > _LONGEST_LINE_BYTES or (not data and rest):
            lines.append(rest)
            self.buffer.clear()
        if not lines:
            return
        sys.stdout.buffer.write(b"".join(self.prefix + bytes(line) + b"\n" for line in lines))
        sys.stdout.buffer.flush()
        if self.log is not None:
            try:
                self.log.write(b"\n".join(lines) + b"\n")
            except OSError:  # a full volume must not take the run with it
                self.log = None


class Gang:
    """The workers of this pod."""

    def __init__(
        self, config: RunConfig, config_path: str, place: environment.Place, folder: Path, log_folder: Path | None
    ) -> None:
        self._config = config
        self._config_path = config_path
        self._place = place
        self._folder = folder
        self._log_folder = log_folder
        self._workers: list[Worker] = []
        self._selector = selectors.DefaultSelector()
        self._deadline: float | None = None
        self._stop_sent = False

    def run(self) -> TerminationMessage:
        """Until every worker has ended: what this pod has to say."""
        on_gpus = self._config.spec.compute.device != "cpu"
        if on_gpus and self._place.nodes > 1 and (problem := environment.rdma_problem()):
            print(problem, flush=True)
        ooms = environment.oom_kills() or 0
        wakeup = self._listen()
        for local in range(self._place.processes):
            self._start(local)
        while any(worker.status is None for worker in self._workers):
            for key, _ in self._selector.select(timeout=0.5):
                if key.data is None:
                    self._on_signals(os.read(wakeup, 64))
                else:
                    self._pump(key.data)
            self._reap()
            self._end_the_rest()
        dumped = False
        for worker in self._workers:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # what it may have left running
                os.killpg(worker.process.pid, signal.SIGKILL)
            self._pump(worker, last=True)
            dumped |= self._keep_stacks(worker)
        verdict = termination.verdict(
            [self._record(worker, (environment.oom_kills() or 0) > ooms) for worker in self._workers]
        )
        if dumped and verdict.outcome == "failed":
            return verdict.model_copy(update={"stacks": self._config.attempt_uri})
        return verdict

    def _listen(self) -> int:
        read, write = os.pipe()
        for end in (read, write):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in (*stop.SIGNALS, stop.STACKS, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        self._selector.register(read, selectors.EVENT_READ, None)
        return read

    def _start(self, local: int) -> None:
        rank = self._place.rank(local)
        process = subprocess.Popen(
            [sys.executable, "-m", "finetune_trainer.worker", self._config.stage, self._config_path, str(self._folder)],
            env=environment.worker_environment(self._config, self._place, local, self._folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C at a terminal reaches us alone, and is forwarded once
            bufsize=0,
        )
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        log = (self._log_folder / f"rank-{rank}.log").open("ab", buffering=0) if self._log_folder else None
        prefix = f"[rank {rank}] ".encode() if self._config.stage == "train" else b""
        worker = Worker(rank, process, log, prefix)
        self._workers.append(worker)
        self._selector.register(process.stdout, selectors.EVENT_READ, worker)
        if local == self._place.processes - 1:  # every worker is there: signals that came meanwhile act now
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (*stop.SIGNALS, stop.STACKS))

    def _on_signals(self, numbers: bytes) -> None:
        if not self._stop_sent and any(number in stop.SIGNALS for number in numbers):
            self._stop_sent = True
            print("asked to stop" + ", with a checkpoint" * (self._config.stage == "train"), flush=True)
            for worker in self._workers:
                if worker.status is None:
                    worker.process.send_signal(signal.SIGTERM)
        if stop.STACKS in numbers:
            for worker in self._workers:
                if worker.status is None:
                    worker.process.send_signal(stop.STACKS)

    def _pump(self, worker: Worker, *, last: bool = False) -> None:
        stream = worker.process.stdout
        if stream is None or stream.closed:
            return
        while True:
            try:
                data = stream.read(_LONGEST_LINE_BYTES)
            except OSError:
                data = b""
            if data:
                worker.feed(data)
            if data is None and not last:
                return
            if not data:  # closed, or nobody is left who could write
                worker.feed(b"")
                self._selector.unregister(stream)
                stream.close()
                return

    def _reap(self) -> None:
        """Collect every child that ended, also orphans that PID 1 inherited."""
        by_pid = {worker.process.pid: worker for worker in self._workers}
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            worker = by_pid.get(pid)
            if worker is None:
                continue
            worker.status = worker.process.returncode = os.waitstatus_to_exitcode(status)
            worker.ended = time.time()
            if worker.status != 0 and self._deadline is None:
                self._deadline = time.monotonic() + GRACE_SECONDS

    def _end_the_rest(self) -> None:
        if self._deadline is None or time.monotonic() < self._deadline:
            return
        for worker in self._workers:
            if worker.status is None and not worker.killed:
                worker.killed = True
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(worker.process.pid, signal.SIGKILL)

    def _keep_stacks(self, worker: Worker) -> bool:
        """Put them where they outlive the pod, unless the worker did so itself. Whether there are any."""
        if self._log_folder is None:
            return False
        stacks, kept = (termination.stacks_path(folder, worker.rank) for folder in (self._folder, self._log_folder))
        with contextlib.suppress(OSError):
            if not kept.exists() and stacks.stat().st_size:
                shutil.copyfile(stacks, kept)
            return kept.exists()
        return False

    def _record(self, worker: Worker, oom_killed: bool) -> TerminationMessage:
        record = termination.read_record(self._folder, worker.rank)
        if record is not None and record.exit_code == worker.status:
            return record
        if worker.killed:
            return TerminationMessage(
                stage=self._config.stage,
                outcome="failed",
                exit_code=ExitCode.PEER_LOST,
                rank=worker.rank,
                time=worker.ended,
                cause=Cause(
                    code="PeerLost",
                    message=f"rank {worker.rank} did not end within {GRACE_SECONDS:.0f} s of a peer's failure and was killed",
                ),
            )
        assert worker.status is not None
        return termination.died(
            self._config.stage, worker.rank, status=worker.status, oom_killed=oom_killed, now=worker.ended
        )
