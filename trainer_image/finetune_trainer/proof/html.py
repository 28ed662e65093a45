"""The proof as a fragment of the report: sample rows token by token, each told by more than its colour.

Trained tokens are green and underlined, masked ones grey, and what the chat template adds is italic; so it can be read
in light and dark, on paper, and by people who see no green.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby

from finetune_api.findings import Proof, ProvenRow, Token

CSS = """
.proof-row { background: var(--card); border: 1px solid var(--rule); border-radius: .6rem; padding: .8rem 1.1rem .9rem; margin: 0 0 1rem; }
.proof-row .count { margin: 0 0 .5rem; color: var(--soft); font-size: .85rem; }
.tokens { margin: 0; font-family: var(--mono); font-size: .84rem; line-height: 1.85; white-space: pre-wrap; overflow-wrap: anywhere; color: var(--soft); }
.tokens .tok, .proof-legend .tok { border-radius: .2rem; box-decoration-break: clone; -webkit-box-decoration-break: clone; }
.tokens .tok { padding: .1em 0; }
.tokens .tok:nth-child(odd) { background: color-mix(in srgb, var(--soft) 13%, transparent); }
.tokens .tok:nth-child(even) { background: color-mix(in srgb, var(--soft) 5%, transparent); }
.tok.trained { color: var(--good); text-decoration: underline; text-decoration-thickness: 2px; text-underline-offset: .22em; text-decoration-skip-ink: none; }
.tokens .tok.trained:nth-child(odd) { background: color-mix(in srgb, var(--good) 24%, transparent); }
.tokens .tok.trained:nth-child(even) { background: color-mix(in srgb, var(--good) 12%, transparent); }
.tok.template { font-style: italic; }
.tok .sp { opacity: .55; }
.proof-legend { margin: 0 0 1rem; padding: 0; list-style: none; display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; font-size: .9rem; color: var(--soft); }
.proof-legend .tok { font-family: var(--mono); padding: .1rem .35rem; background: color-mix(in srgb, var(--soft) 13%, transparent); }
.proof-legend .tok.trained { background: color-mix(in srgb, var(--good) 20%, transparent); }
@media print { .proof-row { break-inside: auto; } .tokens .tok { -webkit-print-color-adjust: exact; print-color-adjust: exact; } }
"""

_SHOWN = {" ": "·", "\t": "⇥", "\n": "↵\n", "\r": "␍", "\u00a0": "␣"}


def fragment(proof: Proof) -> str:
    """A sentence with the numbers, a legend, and the samples. All of it is escaped; the page brings `CSS`."""
    parts = [f"<p>{escape(sentence(proof))}</p>"]
    if proof.samples:
        parts += [
            '<ul class="proof-legend">',
            '<li><span class="tok trained">trained</span> the model learns to write it</li>',
            '<li><span class="tok">masked</span> the model only reads it</li>',
            '<li><span class="tok template">template</span> added by the chat template or the tokenizer</li>',
            "</ul>",
            *(_row(row) for row in proof.samples),
        ]
    return "\n".join(parts)


def sentence(proof: Proof) -> str:
    """What was asserted, and the numbers."""
    total = proof.trained_tokens + proof.masked_tokens
    if not proof.trained_tokens:
        return f"Asserted for {_rows(proof.rows)}: {total:,} tokens are read, and none is a training target."
    share = 100 * proof.trained_tokens / total
    text = (
        f"Asserted for {_rows(proof.rows)}: some tokens are trained, the end of each answer is, and prompts that should be masked "
        f"are not. {proof.trained_tokens:,} of {total:,} tokens ({share:.0f}%) are trained."
    )
    if proof.end_of_turn:
        text += f" {proof.end_of_turn} ends each answer and is trained."
    if proof.template_tokens:
        text += f" The chat template adds {proof.template_tokens:,} tokens."
    return text


def _rows(count: int) -> str:
    return "the only row" if count == 1 else f"every one of {count:,} rows"


def _row(row: ProvenRow) -> str:
    rest = row.length - len(row.tokens)
    more = f" <em>and {rest:,} more token{'s' * (rest > 1)}</em>" if rest else ""
    return (
        f'<article class="proof-row"><p class="source"><bdi>{escape(row.file)}:{row.line}</bdi></p>'
        f'<p class="count">{_counts(row.tokens, row.length)}</p>'
        f'<p class="tokens" dir="auto">{"".join(_spans(row.tokens))}{more}</p></article>'
    )


def _counts(tokens: Sequence[Token], length: int) -> str:
    trained, template = sum(token.trained for token in tokens), sum(token.template for token in tokens)
    shown = f" of the first {len(tokens):,}" if length > len(tokens) else ""
    return f"{length:,} token{'s' * (length != 1)}; {trained:,}{shown} trained, {template:,}{shown} from the template"


def _spans(tokens: Sequence[Token]) -> Iterator[str]:
    """One element a token, so that a reader sees where each ends. Its number is the tooltip."""
    for token in tokens:
        kinds = "tok" + " trained" * token.trained + " template" * token.template
        yield f'<span class="{kinds}" title="{token.id}">{_visible(token.text)}</span>'


def _visible(text: str) -> str:
    """White space as signs; a line still breaks where the row's does. What has no sign (controls, marks that turn the
    direction of text) is named by its number."""
    parts = []
    for is_plain, run in groupby(text, _is_plain):
        piece = "".join(run)
        if is_plain:
            parts.append(escape(piece))
        else:
            signs = "".join(_SHOWN.get(sign, f"\\u{ord(sign):04x}") for sign in piece)
            parts.append(f'<span class="sp">{signs}</span>')
    return "".join(parts) or '<span class="sp">∅</span>'


def _is_plain(character: str) -> bool:
    return character != " " and character.isprintable()
