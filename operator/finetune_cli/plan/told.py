"""A plan in a terminal: the figures, the memory by part, the choices, and what speaks against it."""

from __future__ import annotations

from finetune_api.planner.gpus import gib
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune_cli import view
from finetune_cli.plan.made import Made
from finetune_cli.planned import show_choices, show_figures

BAR_WIDTH = 30


def tell(console: Console, made: Made) -> None:
    """Everything; the verdict is the last line."""
    console.print(Text(view.headline(made.job), style="bold"))
    show_figures(console, made.plan)
    console.print(memory(made), end="")
    show_choices(console, made.plan.choices or [])
    for note in made.notes:
        console.print(Text(f"· {note}", style="dim"))
    for problem in made.problems:
        console.print(Text(problem, style="red"))
    if not made.problems:
        console.print(Text(verdict(made), style="green" if made.estimate.fits else "yellow"))


def verdict(made: Made) -> str:
    """Of a plan that nothing speaks against."""
    budget = made.spec.budget
    limits = any(limit is not None for limit in (budget.max_gpu_hours, budget.max_cost, budget.max_duration))
    within = " and is within spec.budget" if limits else ""
    if made.estimate.fits:
        return f"It fits{within}."
    if made.spec.compute.device == "cpu":
        return f"It needs {gib(made.estimate.memory.total)} of memory a process{within}."
    what = "spec.compute.gpuType or --gpu-type"
    return f"Whether it fits is unknown{within}: give the GPUs with {what} (ftj plan --list-gpus)."


def memory(made: Made) -> Table:
    """By part, the largest first, each as a bar of all that there is."""
    taken = made.estimate
    whole = max(taken.capacity or 0, taken.memory.total, 1)
    what = "process" if made.spec.compute.device == "cpu" else "GPU"
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_footer=True)
    out.add_column(f"memory of a {what}", footer="total")
    out.add_column("", justify="right", footer=gib(taken.memory.total))
    out.add_column("", footer=f"of {gib(taken.capacity)} that can be used" if taken.capacity else "")
    style = "red" if taken.fits is False else "cyan"
    for name, size in sorted(taken.memory.parts().items(), key=lambda part: -part[1]):
        bar = "█" * round(BAR_WIDTH * size / whole) or "▏"
        out.add_row(Text(name), Text(gib(size)), Text(bar, style=style))
    return out
