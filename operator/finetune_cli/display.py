"""How a running job looks: bars that move in a terminal, plain lines anywhere else. Both say the same sentences."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from finetune_api.checks import Severity
from finetune_api.finetunejob import FineTuneJob
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from finetune_cli import view
from finetune_cli.stages import STAGES, StageView, stages
from finetune_cli.text import duration

PLAIN_EVERY_SECONDS = 10
BAR_WIDTH = 24
SEVERITIES: dict[Severity, str] = {"Error": "red", "Warning": "yellow", "Info": "dim"}
MARKS = {"done": ("✓", "green"), "failed": ("✗", "red"), "waiting": ("·", "dim")}


class Display(Protocol):
    """Shows one job until it ends."""

    def show(self, job: FineTuneJob) -> None:
        """The job is now like this."""

    def say(self, sentence: str, *, warning: bool = False) -> None:
        """A sentence that stays."""

    def close(self) -> None:
        """The last picture stays; nothing moves any more."""


def display(console: Console) -> Display:
    """Bars where a person looks on, else lines."""
    return Bars(console) if console.is_terminal and not console.is_dumb_terminal else Lines(console)


class Lines:
    """One line for each thing that happens, and a progress line now and then: for logs and pipes."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self.clock = console, clock
        self.before: FineTuneJob | None = None
        self.last_line, self.last_time = "", 0.0

    def show(self, job: FineTuneJob) -> None:
        if self.before is None:
            self._print(view.headline(job))
        for sentence in view.news(self.before, job):
            self._print(sentence)
        for _, sentence in view.findings(self.before, job):
            self._print(sentence)
        self.before = view.last_told(self.before, job)
        for stage in stages(job):
            if stage.state == "running" and stage.percent is not None and stage.detail:
                self._progress(f"{stage.name} {stage.percent:.0f}%  {stage.detail}")

    def say(self, sentence: str, *, warning: bool = False) -> None:
        self._print(sentence)

    def close(self) -> None:
        return

    def _progress(self, line: str) -> None:
        same_stage = line.split(" ", 1)[0] == self.last_line.split(" ", 1)[0]
        if line == self.last_line or (same_stage and self.clock() - self.last_time < PLAIN_EVERY_SECONDS):
            return
        self.last_line, self.last_time = line, self.clock()
        self._print(line)

    def _print(self, sentence: str) -> None:
        self.console.print(Text(sentence))


class Bars:
    """One bar a stage, redrawn in place; sentences scroll by above."""

    def __init__(self, console: Console) -> None:
        self.console, self.soft_wrap = console, console.soft_wrap
        self.console.soft_wrap = False  # a picture has the terminal's width
        self.job: FineTuneJob | None = None
        self.before: FineTuneJob | None = None
        self.spinners = {name: Spinner("dots", style="cyan") for name in STAGES}
        self.live = Live(get_renderable=self._picture, console=console, refresh_per_second=8, transient=False)
        self.live.start()

    def show(self, job: FineTuneJob) -> None:
        if self.job is None:
            self.console.print(Text(view.headline(job), style="bold"))
        standing = {view.waiting(job), view.data_sentence(job), None if view.awaits(job) else view.plan_sentence(job)}
        for sentence in view.news(self.before, job):
            if sentence not in standing:  # shown next to or below the bars while they are true
                self.console.print(Text(sentence, style="dim"))
        for severity, sentence in view.findings(self.before, job):
            self.console.print(Text(sentence, style=SEVERITIES[severity]))
        self.job, self.before = job, view.last_told(self.before, job)

    def say(self, sentence: str, *, warning: bool = False) -> None:
        self.console.print(Text(sentence, style="yellow" if warning else "dim"))

    def close(self) -> None:
        self.live.stop()
        self.console.soft_wrap = self.soft_wrap

    def _picture(self) -> RenderableType:
        if self.job is None:
            return Text("Waiting for the API server ...", style="dim")
        table = Table.grid(padding=(0, 1))
        for stage in stages(self.job):
            table.add_row(*self._row(stage))
        below = self._below(self.job)
        return Group(table, *([below] if below else []))

    def _row(self, stage: StageView) -> list[RenderableType]:
        mark: RenderableType
        if stage.state == "running":
            mark, style = self.spinners[stage.name], "cyan"
        else:
            symbol, style = MARKS[stage.state]
            mark = Text(symbol, style=style)
        bar: RenderableType = Text("")
        percent = ""
        if stage.state in ("running", "done", "failed"):
            bar = ProgressBar(
                total=100,
                completed=stage.percent or 0,
                width=BAR_WIDTH,
                pulse=stage.state == "running" and stage.percent is None,
                complete_style=style,
                finished_style="green",
            )
            percent = "" if stage.percent is None else f"{stage.percent:.0f}%"
        return [
            mark,
            Text(stage.name, style=style),
            bar,
            Text(f"{percent:>4}"),
            Text(stage.detail, overflow="ellipsis"),
        ]

    def _below(self, job: FineTuneJob) -> RenderableType | None:
        if view.end(job):
            return None
        phase = job.status.phase or "Submitted"
        lasting = duration(view.lasts_seconds(job, time.time()))
        sentence = view.waiting(job)
        return Text(
            f"{phase} ({lasting})" + (f": {sentence}" if sentence else ""),
            style="yellow" if view.needs_attention(job) else "dim",
        )
