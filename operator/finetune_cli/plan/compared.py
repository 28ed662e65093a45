"""Ways of doing one job side by side: as a table in a terminal, in markdown, in JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from finetune_api.planner.compare import By, Row, compare
from finetune_api.planner.draw import spoken
from finetune_api.planner.facts import PlanFacts
from finetune_api.planner.gpus import GPUS, gib
from finetune_api.spec import FineTuneJobSpec
from rich import box
from rich.table import Table
from rich.text import Text

from finetune_cli.errors import CliError
from finetune_cli.plan import markdown as marked
from finetune_cli.text import figure, money

MOST_PER_HOUR = 1e12
"""As budget.gpuHourPrice."""
HEADS = ("", "fits", "memory", "of", "time", "at most", "GPU hours", "cost", "what to know")


@dataclass(frozen=True, slots=True)
class Compared:
    by: By
    rows: list[Row]

    def wire(self) -> list[dict[str, Any]]:
        return [_wire(row) for row in self.rows]


def side_by_side(spec: FineTuneJobSpec, facts: PlanFacts, by: By, prices: Mapping[str, float]) -> Compared:
    """GPUs that have a price are all shown; without prices the usual ones are. Raises CliError for an unknown name."""
    names = tuple(prices) if by == "gpu" and prices else None
    try:
        return Compared(by, compare(spec, facts, by=by, names=names, prices=prices))
    except ValueError as error:
        raise CliError(f"--prices: {error}") from None


def prices_of(text: str) -> dict[str, float]:
    """`h100=2.5,l40s=0.9`. Raises CliError."""
    prices: dict[str, float] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, price = item.partition("=")
        try:
            hour = float(price)
            if not 0 <= hour <= MOST_PER_HOUR:
                raise ValueError
            prices[name.strip()] = hour
        except ValueError:
            raise CliError(f"--prices: {item!r} is no price: write h100=2.5,l40s=0.9") from None
    return prices


def table(compared: Compared) -> Table:
    """What is refused or does not fit is dim or red, with why."""
    heads, rows = _shown(compared)
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in heads:
        words = head in (compared.by, "fits", HEADS[-1])
        out.add_column(head, justify="left" if words else "right", no_wrap=head != HEADS[-1], overflow="fold")
    for row, cells in zip(compared.rows, rows, strict=True):
        style = "dim" if row.estimate is None else "red" if row.estimate.fits is False else ""
        out.add_row(*map(Text, cells), style=style)
    return out


def markdown(compared: Compared) -> str:
    heads, rows = _shown(compared)
    return "\n".join(marked.table(heads, rows))


def _shown(compared: Compared) -> tuple[list[str], list[list[str]]]:
    """Heads and cells, without columns that are empty (costs without a price)."""
    rows = [_cells(row) for row in compared.rows]
    full = [position for position in range(len(HEADS)) if any(row[position] for row in rows)]
    heads = (compared.by, *HEADS[1:])
    return [heads[position] for position in full], [[row[position] for position in full] for row in rows]


def gpu_table() -> Table:
    """Every GPU that compute.gpuType knows."""
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("gpuType", "memory", "TFLOP/s", "GB/s", "bf16"):
        out.add_column(head, justify="left" if head == "gpuType" else "right")
    for name, gpu in GPUS.items():
        bandwidth = f"{gpu.bandwidth / 1e9:,.0f}"
        out.add_row(name, gib(gpu.memory), f"{gpu.flops / 1e12:,.0f}", bandwidth, "yes" if gpu.bf16 else "no")
    return out


def gpu_list() -> Iterator[dict[str, Any]]:
    for name, gpu in GPUS.items():
        yield {
            "gpuType": name,
            "memoryBytes": gpu.memory,
            "flops": gpu.flops,
            "bandwidth": gpu.bandwidth,
            "bf16": gpu.bf16,
        }


def _cells(row: Row) -> tuple[str, ...]:
    one = row.estimate
    if one is None:
        return (row.name, "refused", *[""] * 6, row.refused or "")
    return (
        row.name,
        {True: "yes", False: "no", None: "?"}[one.fits],
        gib(one.memory.total),
        gib(one.capacity) if one.capacity else "",
        spoken(one.duration.seconds),
        spoken(one.duration.longest),
        figure(one.gpu_hours),
        "" if one.cost is None else money(one.cost),
        one.change or "",
    )


def _wire(row: Row) -> dict[str, Any]:
    one = row.estimate
    if one is None:
        return {"name": row.name, "refused": row.refused}
    known = {
        "name": row.name,
        "fits": one.fits,
        "memory": one.memory.total,
        "capacity": one.capacity,
        "seconds": one.duration.seconds,
        "gpuHours": one.gpu_hours,
        "price": row.price,
        "cost": one.cost,
        "change": one.change,
    }
    return {name: value for name, value in known.items() if value is not None}
