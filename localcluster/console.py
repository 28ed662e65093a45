"""What a person sees: a spinner on a terminal, plain lines elsewhere. Everything goes to stderr; stdout is for answers."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_PLAIN_INTERVAL_S = 30.0


def say(text: str) -> None:
    """One line to the person."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def answer(text: str) -> None:
    """One line to whatever reads stdout."""
    sys.stdout.write(text + "\n")


@contextmanager
def progress(title: str, detail: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Show that TITLE is under way, with the elapsed time; DETAIL is asked again and again."""
    started = time.monotonic()
    if sys.stderr.isatty():
        with _spinner(title, detail):
            yield
    else:
        say(f"{title} ...")
        with _every(_PLAIN_INTERVAL_S, lambda: say(f"{title} {detail()} {time.monotonic() - started:.0f} s")):
            yield
    say(f"{title}: done in {time.monotonic() - started:.1f} s")


@contextmanager
def _spinner(title: str, detail: Callable[[], str]) -> Iterator[None]:
    from rich.console import Console  # half a second, which most commands need not wait for
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title)
        with _every(0.5, lambda: bar.update(task, description=f"{title} {detail()}")):
            yield


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
