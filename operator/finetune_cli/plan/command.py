"""The command: facts, plan, and what the person asked to see of it."""

from __future__ import annotations

import difflib
import json
import sys
from dataclasses import dataclass, field
from typing import NoReturn

from finetune_api.finetunejob import FineTuneJob
from finetune_api.planner.compare import By, with_gpu, with_price
from finetune_api.planner.gpus import GPUS, gpu_of
from rich.console import Console
from rich.text import Text

from finetune_cli import manifest, survey, view
from finetune_cli.errors import CliError, Exit
from finetune_cli.plan import compared, told
from finetune_cli.plan.facts import Guesses, Known, gather
from finetune_cli.plan.made import make
from finetune_cli.reach import Reach


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """`prices`: of a GPU hour, by GPU type."""

    reach: Reach
    guesses: Guesses
    gpu_type: str | None = None
    gpu_hour_price: float | None = None
    compare: By | None = None
    prices: dict[str, float] = field(default_factory=dict)


def plan(file: str, options: PlanOptions, output: str) -> NoReturn:
    """Plan the job in FILE, show it, exit with 0, or with 3 when it does not fit or is over budget."""
    given = manifest.read(file)
    job = _as_asked(given.job, options)
    console = Console(stderr=True, highlight=False, markup=False)
    with survey.bar(console, job.metadata.name) as seen:
        known = gather(job.spec, options.reach, options.guesses, seen)
    if options.compare:
        _compare(job, known, options, output)
    made = make(job, known)
    match output:
        case "json":
            print(json.dumps(made.wire()))
        case "markdown":
            from finetune_cli.plan.markdown import markdown

            print(markdown(made))
        case _:
            told.tell(_console(), made)
    sys.exit(Exit.FAILED if made.problems else Exit.DONE)


def list_gpus(output: str) -> None:
    """Print what compute.gpuType may be."""
    if output == "json":
        print(json.dumps(list(compared.gpu_list())))
    else:
        _console().print(compared.gpu_table(), end="")


def _compare(job: FineTuneJob, known: Known, options: PlanOptions, output: str) -> NoReturn:
    assert options.compare
    found = compared.side_by_side(job.spec, known.facts, options.compare, options.prices)
    match output:
        case "json":
            print(json.dumps({"job": job.metadata.name, "by": found.by, "rows": found.wire(), "notes": known.notes}))
        case "markdown":
            print(compared.markdown(found))
        case _:
            console = _console()
            console.print(Text(view.headline(job), style="bold"))
            console.print(compared.table(found), end="")
            for note in known.notes:
                console.print(Text(f"· {note}", style="dim"))
    sys.exit(Exit.DONE)


def _as_asked(job: FineTuneJob, options: PlanOptions) -> FineTuneJob:
    """The job with another GPU or price. Raises CliError for a GPU that is not known."""
    spec = job.spec
    if (name := options.gpu_type) is not None:
        if gpu_of(name) is None:
            close = difflib.get_close_matches(name, GPUS, n=1)
            raise CliError(
                f"--gpu-type: {name!r} is not known{f'; did you mean {close[0]}?' if close else ''} ftj plan --list-gpus"
            )
        spec = with_gpu(spec, name)
    price = options.gpu_hour_price
    if price is not None and not 0 <= price <= compared.MOST_PER_HOUR:
        raise CliError(f"--gpu-hour-price: {price} is no price: write 2.5")
    if price is None and (kind := spec.compute.gpu_type) and options.compare != "gpu":
        price = options.prices.get(kind)
    if price is not None:
        spec = with_price(spec, price)
    return job.model_copy(update={"spec": spec})


def _console() -> Console:
    """A table needs a width; a log or a pipe gets a wide one."""
    console = Console(highlight=False, markup=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, width=160, soft_wrap=True)
