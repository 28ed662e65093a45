"""One stage as processes: a launcher a pod, all on loopback, told what the operator tells its pods."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from finetune_api import contract
from finetune_api.contract import Cause, Progress, RunConfig, TerminationMessage
from finetune_api.pods import PodSettings

from finetune_cli.children import end_with_parent

LOOPBACK = "127.0.0.1"
PEERS_SECONDS = 30
"""How long the other pods of a gang may take to notice that one has ended badly."""


@dataclass
class Launcher:
    """One process that stands for a pod."""

    process: subprocess.Popen[bytes]
    message_file: Path
    log_file: Path
    log: IO[bytes]


@dataclass
class StageProcesses:
    """The running stage. Use as a context manager: on leaving, whatever still runs is killed."""

    config: RunConfig
    settings: PodSettings
    log_folder: Path
    launchers: list[Launcher] = field(default_factory=list)
    _failed_at: float | None = None

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="ftj-")
        try:
            self._start(Path(self._folder.name))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _start(self, root: Path) -> None:
        config_file = root / contract.RUN_CONFIG_KEY
        config_file.write_text(self.config.encode())
        pods = self.config.spec.compute.nodes if self.config.stage == "train" else 1
        self._progress_port = free_port()
        rendezvous = free_port()
        self.log_folder.mkdir(parents=True, exist_ok=True)
        for index in range(pods):
            scratch = root / f"pod-{index}"
            scratch.mkdir()
            environment = self._environment(index, pods, rendezvous, scratch)
            log_file = self.log_folder / f"{self.config.stage}-{self.config.attempt}-pod-{index}.log"
            log = log_file.open("ab", buffering=0)
            process = subprocess.Popen(
                [sys.executable, "-m", "finetune_trainer", self.config.stage, "--config", str(config_file)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C at the terminal is ours; they are told to stop
                preexec_fn=end_with_parent,
            )
            self.launchers.append(Launcher(process, Path(environment[contract.ENV_TERMINATION_LOG]), log_file, log))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for launcher in self.launchers:
            if launcher.process.poll() is None:
                launcher.process.kill()
            launcher.process.wait()
            launcher.log.close()
        self._folder.cleanup()

    def running(self) -> bool:
        """Whether any pod still runs. A pod that failed gives the others PEERS_SECONDS to end as well."""
        codes = [launcher.process.poll() for launcher in self.launchers]
        if any(code not in (None, 0, contract.ExitCode.STOPPED) for code in codes) and self._failed_at is None:
            self._failed_at = time.monotonic()
        if self._failed_at is not None and time.monotonic() - self._failed_at > PEERS_SECONDS:
            for launcher in self.launchers:
                if launcher.process.poll() is None:
                    launcher.process.kill()
        return any(code is None for code in codes)

    def stop(self) -> None:
        """Ask every pod to save a checkpoint and end."""
        for launcher in self.launchers:
            with contextlib.suppress(ProcessLookupError):
                launcher.process.send_signal(signal.SIGTERM)

    def progress(self) -> Progress | None:
        """What rank 0 serves; None while it does not."""
        url = f"http://{LOOPBACK}:{self._progress_port}{contract.PROGRESS_PATH}"
        try:
            with urllib.request.urlopen(url, timeout=2) as response:
                return Progress.model_validate_json(response.read(contract.PROGRESS_MAX_BYTES))
        except (OSError, ValueError, urllib.error.URLError):
            return None

    def verdict(self) -> TerminationMessage:
        """What the stage has to say, once nothing runs any more."""
        return speaks_for_all([self._message(index, launcher) for index, launcher in enumerate(self.launchers)])

    def _message(self, index: int, launcher: Launcher) -> TerminationMessage:
        code = launcher.process.wait()
        with contextlib.suppress(OSError):
            if message := TerminationMessage.decode(launcher.message_file.read_text()):
                return message
        how = f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
        last = _last_line(launcher.log_file)
        return TerminationMessage(
            stage=self.config.stage,
            outcome="failed",
            exit_code=code if code else 1,
            rank=index,
            time=time.time(),
            cause=Cause(
                code="Unknown",
                message=f"the process ended with {how} and left no message"
                + (f"; its log ends with: {last}" if last else ""),
                remedy=f"Read {launcher.log_file}",
            ),
        )

    def _environment(self, index: int, pods: int, rendezvous: int, scratch: Path) -> dict[str, str]:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        processes = pods * (self.config.spec.compute.processes_per_node or 1) if self.config.stage == "train" else 1
        wanted = {item.name: item.value for item in self.settings.env or [] if item.value is not None}
        return {
            # All pods share this machine's cores.
            "OMP_NUM_THREADS": str(max(1, cores // processes)),
            **os.environ,
            **wanted,
            "PYTHONUNBUFFERED": "1",
            contract.ENV_NODE_RANK: str(index),
            contract.ENV_MASTER_ADDR: LOOPBACK,
            contract.ENV_MASTER_PORT: str(rendezvous),
            contract.ENV_PROGRESS_PORT: str(self._progress_port if index == 0 else free_port()),
            contract.ENV_TERMINATION_LOG: str(scratch / "termination-log"),
            contract.ENV_SCRATCH: str(scratch),
            contract.ENV_NODE_NAME: socket.gethostname(),
            contract.ENV_POD_NAME: f"{self.config.job.name}-{self.config.stage}-{index}",
        }


def speaks_for_all(messages: Sequence[TerminationMessage]) -> TerminationMessage:
    """A failure with a cause of its own before one that only lost its peers, the earliest among equals; a stop before a
    success; else the first pod's."""

    def weight(message: TerminationMessage) -> tuple[int, float]:
        if message.outcome == "succeeded":
            return 3, message.rank
        if message.outcome == "stopped":
            return 2, message.rank
        return int(message.exit_code == contract.ExitCode.PEER_LOST), message.time or float("inf")

    return min(messages, key=weight)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _last_line(log: Path) -> str:
    with contextlib.suppress(OSError):
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines()[-20:] if line.strip()]
        return lines[-1][:400] if lines else ""
    return ""
