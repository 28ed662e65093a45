"""The end of a job, for people: the base-against-tuned table and where the result is."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_api.evaluation import LOWER_IS_BETTER
from finetune_api.finetunejob import FineTuneJob
from finetune_api.status import MetricRow
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune_cli import view
from finetune_cli.errors import Exit
from finetune_cli.planned import show_plan
from finetune_cli.text import count, number

SHARES = {"exact-match"}


def show(console: Console, job: FineTuneJob, next_steps: Sequence[str] = ()) -> None:
    """Everything that a person wants to know of a job that ended; the sentence about a failure is the last line."""
    status, ended = job.status, view.end(job)
    if status.evaluation and status.evaluation.metrics:
        console.print(table(status.evaluation.metrics), end="")
        if status.evaluation.rows:
            line = f"Measured on {count(status.evaluation.rows, 'held-out row')}"
            if status.evaluation.generated_rows:
                line += f"; answers generated for {number(status.evaluation.generated_rows)} of them"
            console.print(Text(line + ".", style="dim"))
    if status.plan and (view.planned(job) or status.reason == "OverBudget"):
        show_plan(console, status.plan)
    if ended is None or not ended.succeeded:
        if status.last_checkpoint:
            kept = f"Last sealed checkpoint: step {number(status.last_checkpoint.step)}"
            console.print(Text(kept + (f" in {status.last_checkpoint.path}" if status.last_checkpoint.path else "")))
        if ended is not None:
            console.print(Text(ended.sentence, style="yellow" if ended.exit_code is Exit.BUDGET else "red"))
        return
    if status.artifacts:
        console.print(Text.assemble(("Artifacts  ", "bold"), view.artifacts_sentence(job)))
        if status.artifacts.report:
            console.print(Text.assemble(("Report     ", "bold"), status.artifacts.report))
    for step in next_steps:
        console.print(Text(step, style="dim"))
    console.print(Text(ended.sentence, style="green"))


def table(metrics: Sequence[MetricRow]) -> Table:
    """Base against tuned. Without a measured base only the tuned figures are shown."""
    baseline = any(row.base is not None for row in metrics)
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    out.add_column("metric")
    if baseline:
        out.add_column("base", justify="right")
    out.add_column("tuned", justify="right", style="bold")
    if baseline:
        out.add_column("change", justify="right")
    for row in metrics:
        cells = [Text(row.metric)]
        if baseline:
            cells.append(_figure(row.metric, row.base))
        cells.append(_figure(row.metric, row.tuned))
        if baseline:
            cells.append(_change(row))
        out.add_row(*cells)
    return out


def _figure(metric: str, value: float | None) -> Text:
    if value is None:
        return Text("-")
    return Text(f"{100 * value:.1f}%" if metric in SHARES else f"{value:.4g}")


def _change(row: MetricRow) -> Text:
    if row.base is None or row.tuned is None:
        return Text("")
    difference = row.tuned - row.base
    text = f"{100 * difference:+.1f} points" if row.metric in SHARES else f"{difference:+.4g}"
    better = difference < 0 if row.metric in LOWER_IS_BETTER else difference > 0
    return Text(text, style="" if difference == 0 else "green" if better else "red")
