"""A plan as a comment on a pull request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from finetune_api.planner.gpus import gib

from finetune_cli import view
from finetune_cli.plan.made import Made
from finetune_cli.plan.told import verdict
from finetune_cli.planned import figures


def markdown(made: Made) -> str:
    """The verdict and the figures at once, memory and choices folded away."""
    return "\n".join(_lines(made))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Figures stand to the right."""
    yield _row(head)
    yield "|" + "---|" * len(head)
    for row in rows:
        yield _row(row)


def _lines(made: Made) -> Iterator[str]:
    yield f"### Plan of {_text(view.headline(made.job))}"
    yield ""
    for problem in made.problems:
        yield f"❌ {_text(problem)}"
    if not made.problems:
        yield f"{'✅' if made.estimate.fits else '⚠️'} {_text(verdict(made))}"
    yield ""
    yield from table(("", ""), figures(made.plan))
    yield ""
    taken = made.estimate
    whole = f" of {gib(taken.capacity)}" if taken.capacity else ""
    parts = sorted(taken.memory.parts().items(), key=lambda part: -part[1])
    yield from _folded(
        f"Memory: {gib(taken.memory.total)}{whole}", ("part", ""), [(name, gib(size)) for name, size in parts]
    )
    choices = [(choice.field, choice.value, choice.why) for choice in made.plan.choices or []]
    yield from _folded(f"{len(choices)} fields decided for you", ("field", "value", "why"), choices)
    for note in made.notes:
        yield f"_{_text(note)}_"


def _folded(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    if rows:
        yield f"<details><summary>{title}</summary>"
        yield ""
        yield from table(head, rows)
        yield ""
        yield "</details>"
        yield ""


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_text(cell).replace("|", "\\|") for cell in cells) + " |"


def _text(text: str) -> str:
    """What others wrote stays text: no mark-up, no mentions."""
    text = " ".join(text.split())
    for char in "\\`*_[]<>#":
        text = text.replace(char, f"\\{char}")
    return text.replace("@", "@\u200b")
