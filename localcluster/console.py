"""What a person sees: a spinner on a terminal, plain lines elsewhere. Everything goes to stderr; stdout is for answers."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

_console = Console(stderr=True, highlight=False, soft_wrap=True)
_PLAIN_INTERVAL_S = 30.0

Say = Callable[[str], None]


def say(text: str) -> None:
    """One line to the person."""
    _console.print(text, markup=False)


def answer(text: str) -> None:
    """One line to whatever reads stdout."""
    sys.stdout.write(text + "\n")


@contextmanager
def progress(title: str, detail: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Show that TITLE is under way, with the elapsed time; DETAIL is asked again and again."""
    started = time.monotonic()
    if _console.is_terminal:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=_console, transient=True) as bar:
            task = bar.add_task(title)
            with _every(0.5, lambda: bar.update(task, description=f"{title} {detail()}")):
                yield
    else:
        say(f"{title} ...")
        with _every(_PLAIN_INTERVAL_S, lambda: say(f"{title} {detail()} {time.monotonic() - started:.0f} s")):
            yield
    say(f"{title}: done in {time.monotonic() - started:.1f} s")


@contextmanager
def _every(seconds: float, act: Callable[[], None]) -> Iterator[None]:
    finished = threading.Event()

    def tick() -> None:
        while not finished.wait(seconds):
            act()

    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    try:
        yield
    finally:
        finished.set()
        ticker.join()
