"""What can be combined, as a page: every method, strategy and task, and the reasons of all that is refused."""

from __future__ import annotations

from typing import get_args

from finetune_api.combinations import COMBINATIONS, Combination, Is
from finetune_api.compute import Strategy
from finetune_api.method import MethodType, Task

_HEAD = """# What can be combined

<!-- Generated from finetune_api.combinations by `make crds`. Do not edit. -->

The API server, `ftj` and local runs refuse a job that asks for a combination which cannot work, before anything runs, and
say what comes nearest. What a job leaves out is decided so that it fits the rest; the task, which follows from data and
model, is held to the same table when prepare has found it out.

## Method, strategy and task

"""


def text() -> str:
    """The whole page."""
    parts = [_HEAD]
    for task in get_args(Task):
        strategies = get_args(Strategy)
        parts.append(f"### {task}\n\n| `method.type` | {' | '.join(f'`{name}`' for name in strategies)} |\n")
        parts.append("|---" * (len(strategies) + 1) + "|\n")
        for method in get_args(MethodType):
            cells = [_cell(cell(task, method, strategy)) for strategy in strategies]
            parts.append(f"| `{method}` | {' | '.join(cells)} |\n")
        parts.append("\n")
    parts.append("## All that is refused\n\nA line refuses a job that has everything in its second column.\n\n")
    parts.append("| | fields | why | instead |\n|---|---|---|---|\n")
    for number, row in enumerate(COMBINATIONS, 1):
        parts.append(f"| {number} | {_fields(row)} | {_sentence(row.why)} | {_sentence(row.instead)} |\n")
    return "".join(parts)


def cell(task: str, method: str, strategy: str) -> list[int]:
    """Numbers (from 1) of the rows of the table that refuse these three, whatever else a job says; empty: it works."""
    chosen = {"model.task": task, "method.type": method, "compute.strategy": strategy}
    return [
        number
        for number, row in enumerate(COMBINATIONS, 1)
        if all(isinstance(one, Is) and chosen.get(one.path) in one.values for one in row.when)
    ]


def _cell(reasons: list[int]) -> str:
    return f"refused ({', '.join(map(str, reasons))})" if reasons else "works"


def _fields(row: Combination) -> str:
    words = []
    for one in row.when:
        values = (str(value).lower() if isinstance(value, bool) else value for value in getattr(one, "values", ()))
        words.append(" ".join([f"`{one.path}`", ", ".join(values)]).strip())
    return " with ".join(words)


def _sentence(words: str) -> str:
    return words.replace("|", "\\|")
