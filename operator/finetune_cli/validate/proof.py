"""The proof: sample rows token by token, as the model will see them, with what is learnt of them.

In a terminal the tokens are coloured. Elsewhere each run of tokens of one kind is a line that begins with the kind, and
a bar parts the tokens, so that nothing is lost in a log.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Literal

from finetune_api.findings import Proof, ProvenRow, Token
from rich.console import Console
from rich.text import Text

from finetune_cli.reach import shown_path
from finetune_cli.text import count, number, visible

Kind = Literal["trained", "masked", "template"]
STYLES: dict[Kind, tuple[str, str]] = {
    # two shades, so that neighbouring tokens can be told apart
    "trained": ("black on green", "black on bright_green"),
    "masked": ("", "dim"),
    "template": ("cyan", "dim cyan"),
}
_BAR = "│"


def show_proof(console: Console, proof: Proof, claims_root: str | None) -> None:
    """What holds for every row, then the samples."""
    console.print(Text(f"  {summary(proof)}"))
    if console.is_terminal:
        legend = Text("  ").join(Text(f" {kind} ", style=styles[0]) for kind, styles in STYLES.items())
        console.print(Text.assemble("  ", legend))
    for row in proof.samples:
        head = f"  {shown_path(row.file, claims_root)}:{row.line}  {_counts(row)}"
        console.print(Text(head, style="bold"))
        for line in coloured(row.tokens) if console.is_terminal else plain(row.tokens):
            console.print(Text.assemble("    ", line))
        if row.length > len(row.tokens):
            console.print(Text(f"    ... {count(row.length - len(row.tokens), 'token')} more", style="dim"))


def summary(proof: Proof) -> str:
    """One sentence with the numbers."""
    sentence = f"Proof over {count(proof.rows, 'row')}: {count(proof.trained_tokens, 'token')} trained, {number(proof.masked_tokens)} masked"
    if proof.template_tokens:
        sentence += f"; the chat template adds {number(proof.template_tokens)}"
    if proof.end_of_turn:
        sentence += f"; {visible(proof.end_of_turn)} ends each answer and is trained"
    return sentence + "."


def kind(token: Token) -> Kind:
    """What is learnt counts before where it comes from."""
    return "trained" if token.trained else "template" if token.template else "masked"


def coloured(tokens: Iterable[Token]) -> Iterator[Text]:
    """The text as it stands, broken where it breaks."""
    line = Text()
    for position, token in enumerate(tokens):
        line.append(visible(token.text), style=STYLES[kind(token)][position % 2])
        if token.text.endswith("\n"):
            yield line
            line = Text()
    if line:
        yield line


def plain(tokens: Iterable[Token]) -> Iterator[Text]:
    """One line a run of tokens."""
    for what, run in groupby(tokens, kind):
        yield Text(f"{what:<8} {_BAR}{_BAR.join(visible(token.text) for token in run)}{_BAR}")


def _counts(row: ProvenRow) -> str:
    trained = sum(token.trained for token in row.tokens)
    more = " of those shown" if row.length > len(row.tokens) else ""
    return f"{count(row.length, 'token')}, {number(trained)} trained{more}"
