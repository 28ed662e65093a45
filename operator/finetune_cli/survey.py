"""Read data and model with the trainer's code, in a process: `python -m finetune_trainer survey`. No cluster, no torch, no GPU."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from finetune_api.contract import Progress, SurveyAnswer, SurveyRequest
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from finetune_cli.children import end_with_parent
from finetune_cli.errors import CliError
from finetune_cli.reach import Reach
from finetune_cli.text import visible

COMMAND = (sys.executable, "-P", "-m", "finetune_trainer", "survey")  # -P: no module of the user's own folder
MODULES = ("orjson", "pyarrow", "fsspec", "jinja2", "transformers")
CLEANING_S = 10.0
"""Seconds to remove what is half done."""
INSTALL = "pip install 'finetune-operator[cli,data]'"


def missing() -> str | None:
    """Which module that reading data needs is not there, and how to get it, as a clause; None when all are."""
    module = next((module for module in MODULES if find_spec(module) is None), None)
    return module and f"this Python has no {module}: {INSTALL}"


def request(reach: Reach, **what: Any) -> SurveyRequest:
    """For what is in reach. Downloads are kept between calls."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return SurveyRequest(claims_root=reach.claims_root, cache=str(caches / "finetune-operator" / "survey"), **what)


def survey(asked: SurveyRequest, seen: Callable[[Progress], None] = lambda _: None) -> SurveyAnswer:
    """Ask, report progress to `seen`, and return the answer. Raises CliError when the process gives none."""
    question = asked.model_dump_json(by_alias=True, exclude_none=True).encode()
    process = subprocess.Popen(
        COMMAND,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=end_with_parent,
    )
    assert process.stdin
    assert process.stdout
    assert process.stderr
    answer, last = bytearray(), ""
    reader = threading.Thread(target=lambda out=process.stdout: answer.extend(out.read()), daemon=True)
    reader.start()
    try:
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(question)
        for line in process.stderr:
            try:
                seen(Progress.model_validate_json(line))
            except ValidationError:
                last = line.decode("utf-8", "replace").strip() or last
        code = process.wait()
    finally:
        if process.poll() is None:  # interrupted: what it has of the rows goes with it
            process.terminate()
            try:
                process.wait(CLEANING_S)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
        reader.join()
        process.stdout.close()
        process.stderr.close()
    try:
        return SurveyAnswer.model_validate_json(bytes(answer))
    except ValidationError:
        last = f": {visible(last)[:400]}" if last else ""
        raise CliError(f"reading the data ended with exit code {code} and gave no result{last}") from None


@contextlib.contextmanager
def bar(console: Console, what: str) -> Iterator[Callable[[Progress], None]]:
    """A progress bar on a terminal, nothing elsewhere. Yields what `survey` reports its progress to."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rows]:,} rows"),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(what, total=None, rows=0)
        yield lambda progress: bars.update(task, completed=progress.percent, total=100, rows=progress.step)
