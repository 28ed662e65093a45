"""How what was found of people and keys is shown: enough to find it again in the row, never enough to use it."""

from __future__ import annotations

from collections.abc import Iterable

from finetune_api import secret_patterns
from finetune_api.spans import Span, disjoint

from finetune_trainer.checks import pii

EXCERPT = 200
"""Most characters of a row that are shown."""

_SHOWN_AT_START = {
    "iban": 2,
    "aws-key": 4,
    "github-token": 4,
    "gitlab-token": 6,
    "slack-token": 4,
    "google-key": 4,
    "openai-key": 3,
    "anthropic-key": 7,
    "huggingface-token": 3,
    "stripe-key": 8,
    "npm-token": 4,
    "pypi-token": 5,
}
"""Characters that belong to the kind, not to the one who owns it. Of other kinds nothing is shown."""


def masked(value: str, kind: str) -> str:
    """`j***@e***.com` for addresses, else the kind's own first characters and the length: `AKIA…(20 characters)`."""
    if kind == "email":
        return _masked_address(value)
    return f"{value[: _SHOWN_AT_START.get(kind, 0)]}…({len(value)} characters)"


def _masked_address(value: str) -> str:
    local, _, domain = value.rpartition("@")
    name, _, ending = domain.rpartition(".")
    return f"{_first_of(local)}***@{_first_of(name)}***.{ending}"


def _first_of(word: str) -> str:
    """Nothing of a word so short that its first letter says most of it."""
    return word[0] if len(word) > 2 else ""


def covered(text: str) -> list[Span]:
    """Everything in a text that must not be shown: personal data and secrets, disjoint and in order."""
    return disjoint([*secret_patterns.spans(text), *pii.spans(text)])


def written(text: str, spans: Iterable[Span]) -> str:
    """The text with each span masked. `spans` are disjoint and in order."""
    parts, end = [], 0
    for span in spans:
        parts += [text[end : span.start], masked(text[span.start : span.end], span.kind)]
        end = span.end
    return "".join([*parts, text[end:]])


_BEFORE = 60
"""Characters of an excerpt that stand before what it shows."""
_WHOLE = 1 << 20
"""Characters up to which a row is searched in whole for what must be masked. Of longer ones nothing is shown."""


def excerpt(text: str, at: int = 0) -> str:
    """At most 200 characters from around `at`, in one line, with personal data and secrets masked."""
    if len(text) > _WHOLE:
        return f"(a row of {len(text):,} characters)"
    spans = covered(text)
    begin = max(0, at - _BEFORE) if at > EXCERPT - _BEFORE else 0
    end = begin + EXCERPT
    for span in spans:  # none is cut: what is left of it could not be told to be one
        if span.start < begin < span.end:
            begin = span.start
        if span.start < end < span.end:
            end = span.end
    inside = [Span(span.start - begin, span.end - begin, span.kind) for span in spans if begin <= span.start < end]
    shown = " ".join(written(text[begin:end], inside).encode("utf-8", "replace").decode().split())
    shown = ("…" if begin else "") + shown + ("…" if end < len(text) else "")
    return shown if len(shown) <= EXCERPT else shown[: EXCERPT - 1] + "…"
