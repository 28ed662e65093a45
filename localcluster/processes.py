"""Start servers, remember them, and stop exactly those: a record names a process by its id and its start time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Which boot of this machine it is: ids of an earlier boot mean nothing."""
    return _BOOT_ID.read_text().strip()


@dataclass(frozen=True)
class Process:
    """A process that we started. Ids are used again by the kernel; a start time in clock ticks is not."""

    component: str
    pid: int
    started: int
    boot: str

    @property
    def alive(self) -> bool:
        """Whether this very process runs; a zombie does not."""
        if self.boot != boot_id():
            return False
        state = _state(self.pid)
        return state is not None and state[0] not in "ZX" and state[1] == self.started


def _state(pid: int) -> tuple[str, int] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the program's name in brackets and may hold anything, brackets too.
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[19])


class Registry:
    """The records of one cluster: a file for each component, written as soon as it has started."""

    def __init__(self, folder: Path, logs: Path) -> None:
        self._folder = folder
        self._logs = logs

    def log(self, component: str) -> Path:
        """Where COMPONENT writes."""
        return self._logs / f"{component}.log"

    def get(self, component: str) -> Process | None:
        """The record of COMPONENT, dead or alive."""
        try:
            return Process(**json.loads((self._folder / f"{component}.json").read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def alive(self, component: str) -> bool:
        """Whether COMPONENT runs."""
        process = self.get(component)
        return process is not None and process.alive

    def all(self) -> list[Process]:
        """Every record."""
        names = sorted(file.stem for file in self._folder.glob("*.json"))
        return [process for name in names if (process := self.get(name)) is not None]

    def start(self, component: str, command: Sequence[str], program: Path, environment: dict[str, str]) -> Process:
        """Start COMPONENT in a session of its own, so that neither Ctrl-C nor our end reaches it. PROGRAM is the file;
        the first word of COMMAND is the name that it sees itself and that ``ps`` shows."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._logs.mkdir(parents=True, exist_ok=True)
        with self.log(component).open("ab") as output:
            child = subprocess.Popen(
                command,
                executable=program,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                cwd="/",
            )
        state = _state(child.pid)
        process = Process(component, child.pid, state[1] if state else 0, boot_id())
        (self._folder / f"{component}.json").write_text(json.dumps(asdict(process)))
        return process

    def stop(self, components: Iterable[str], grace_s: float = 5.0) -> None:
        """Ask COMPONENTS to end, all at once; after GRACE_S end them."""
        records = [process for name in components if (process := self.get(name)) is not None]
        _end([process for process in records if process.alive], grace_s)
        for process in records:
            (self._folder / f"{process.component}.json").unlink(missing_ok=True)


def _end(processes: Sequence[Process], grace_s: float) -> None:
    for number, seconds in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 10.0)):
        for process in processes:
            if process.alive:
                _signal(process.pid, number)
        deadline = time.monotonic() + seconds
        while any(_running(process) for process in processes):
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        else:
            return


def _running(process: Process) -> bool:
    # A child of this very process stays a zombie until it is waited for.
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)
    return process.alive


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def end_matching(needle: str, grace_s: float = 2.0) -> None:
    """End every process one of whose arguments is or starts with NEEDLE: containerd's shims, which outlive it."""
    found: list[Process] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        state = _state(int(entry.name))
        if state and any(argument.decode(errors="replace").startswith(needle) for argument in arguments):
            found.append(Process("shim", int(entry.name), state[1], boot_id()))
    _end(found, grace_s)


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log, for a person to see why a component died."""
    try:
        text = log.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return "(it wrote nothing)"
    return "\n".join(line[:400] for line in text[-lines:]) or "(it wrote nothing)"
