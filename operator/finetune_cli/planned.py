"""A plan, for people: what training will do and take, and every choice that was made for them with its reason."""

from __future__ import annotations

from collections.abc import Iterator

from finetune_api.planner.draw import spoken
from finetune_api.status import ChoiceStatus, PlanStatus
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune_cli.text import figure, money, number
from finetune_cli.view import course, on_each


def show_plan(console: Console, plan: PlanStatus) -> None:
    """The figures, what to beware of, then the choices."""
    show_figures(console, plan)
    if plan.warning:
        console.print(Text(f"! {plan.warning}", style="yellow"))
    show_choices(console, plan.choices or [])


def show_figures(console: Console, plan: PlanStatus) -> None:
    table = Table.grid(padding=(0, 2))
    for name, value in figures(plan):
        table.add_row(Text(name, style="bold"), Text(value))
    console.print(table)


def show_choices(console: Console, choices: list[ChoiceStatus]) -> None:
    if not choices:
        return
    chosen = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("decided for you", "value", "why"):
        chosen.add_column(head, overflow="fold")
    for choice in choices:
        chosen.add_row(Text(choice.field), Text(choice.value), Text(choice.why, style="dim"))
    console.print(chosen, end="")


def figures(plan: PlanStatus) -> Iterator[tuple[str, str]]:
    """Names and values of what is known."""
    if plan.digest:
        yield "Plan", plan.digest
    if plan.steps is not None:
        yield "Steps", number(plan.steps) + course(plan)
    if plan.parameters:
        trained = plan.trainable_parameters or 0
        share = f", {number(trained)} trained ({100 * trained / plan.parameters:.2g}%)" if trained else ""
        yield "Parameters", f"{number(plan.parameters)}{share}"
    if plan.memory_per_gpu:
        yield "Memory", f"{plan.memory_per_gpu} {on_each(plan)} at the peak"
    if plan.host_memory_per_pod:
        yield "Host memory", f"{plan.host_memory_per_pod} a pod"
    if plan.storage:
        yield "Storage", plan.storage
    if plan.duration:
        longest = f", at most {spoken(plan.longest_seconds)}" if plan.longest_seconds else ""
        yield "Time", f"{plan.duration}{longest}" + (f" ({plan.basis})" if plan.basis else "")
    if plan.gpu_hours:
        yield "GPU hours", figure(plan.gpu_hours)
    if plan.cost:
        yield "Cost", money(plan.cost)
