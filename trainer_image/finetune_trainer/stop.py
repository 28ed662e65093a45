"""SIGTERM as a flag that a stage polls at a safe place. Until the stage says `ready`, it ends the process at once.

Importing, waiting for peers and loading a model can block inside C code, where Python runs no signal handler. The C-level
wake-up descriptor is written all the same, and a thread reads it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

from finetune_trainer.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT)
STACKS = signal.SIGUSR1
"""From a worker to PID 1: something hangs. From PID 1 to its workers: write down where each thread stands."""


class StopFlag:
    """`requested` becomes true when this process is told to stop, and never false again."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._leave: Callable[[], None] | None = None

    @property
    def requested(self) -> bool:
        return self._event.is_set()

    def request(self) -> None:
        """As a signal would. Leaves the process if nothing needs saving yet."""
        with self._lock:
            self._event.set()
            leave = self._leave
        if leave is not None:
            leave()

    def ready(self) -> None:
        """From here on the stage polls: a signal sets the flag and does nothing else."""
        with self._lock:
            self._leave = None

    def check(self) -> None:
        """Raise Stopped if asked to stop: for stages that a stop may cut anywhere, and that start anew."""
        if self.requested:
            raise Stopped("stopped on request", code="Stopped")

    def install(self, leave: Callable[[], None]) -> None:
        """Take over SIGTERM and SIGINT in the main thread; `leave` must end the process and is called until `ready`."""
        self._leave = leave
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        threading.Thread(target=self._watch, args=(read,), name="stop", daemon=True).start()

    def _watch(self, descriptor: int) -> None:
        while data := os.read(descriptor, 64):
            if any(number in SIGNALS for number in data):
                self.request()
