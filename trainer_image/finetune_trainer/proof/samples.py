"""Which rows are shown, and how: the shortest, the middle one, the longest, one of several turns and one that was cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from finetune_api.findings import ProvenRow, Token

from finetune_trainer.data.lengths import bin_start

if TYPE_CHECKING:
    from finetune_trainer.proof.prover import Seen
    from finetune_trainer.proof.spelling import Spelling

SHOWN_TOKENS = 1024
_COVER, _HIDDEN = "•", -1


class _Kept(NamedTuple):
    source: tuple[int, ...]
    ids: np.ndarray
    mask: np.ndarray
    template: np.ndarray
    length: int


class Samples:
    """Keeps the first row of each bin of lengths, since nobody knows the middle before the end."""

    def __init__(self) -> None:
        self._by_length: dict[int, _Kept] = {}
        self._counts: dict[int, int] = {}
        self._special: dict[str, _Kept] = {}
        self._lowest, self._highest = 1 << 62, -1

    def offer(self, row: Seen, template: np.ndarray) -> None:
        """`template`: which tokens of the row are not its own, bool of shape [length]."""
        length = len(row.kept.ids)
        place = bin_start(length)
        self._counts[place] = self._counts.get(place, 0) + 1
        if place not in self._by_length:
            self._by_length[place] = _kept(row, template)
        if length < self._lowest:
            self._lowest, self._special["shortest"] = length, _kept(row, template)
        if length > self._highest:
            self._highest, self._special["longest"] = length, _kept(row, template)
        if "cut" not in self._special and row.is_cut:
            self._special["cut"] = _kept(row, template)
        if "turns" not in self._special and len(row.example.messages or ()) > 3:
            self._special["turns"] = _kept(row, template)

    def shown(
        self, spelling: Spelling, names: Sequence[str], covered: Callable[[str], list[tuple[int, int]]] | None
    ) -> list[ProvenRow]:
        chosen: dict[tuple[int, ...], _Kept] = {}
        for row in (
            self._special.get("shortest"),
            self._middle(),
            self._special.get("longest"),
            self._special.get("turns"),
            self._special.get("cut"),
        ):
            if row is not None:
                chosen.setdefault(row.source, row)
        return [
            ProvenRow(
                file=names[row.source[0]], line=row.source[1], tokens=_tokens(row, spelling, covered), length=row.length
            )
            for row in chosen.values()
        ]

    def _middle(self) -> _Kept | None:
        half, seen = sum(self._counts.values()) / 2, 0
        for place in sorted(self._counts):
            seen += self._counts[place]
            if seen >= half:
                return self._by_length[place]
        return None


def _kept(row: Seen, template: np.ndarray) -> _Kept:
    mask = row.kept.mask[:SHOWN_TOKENS].copy()
    mask[:1] = False
    return _Kept(
        row.source, row.kept.ids[:SHOWN_TOKENS].copy(), mask, template[:SHOWN_TOKENS].copy(), len(row.kept.ids)
    )


def _tokens(row: _Kept, spelling: Spelling, covered: Callable[[str], list[tuple[int, int]]] | None) -> list[Token]:
    ids, texts = row.ids.tolist(), spelling.texts(row.ids.tolist())
    if covered is not None:
        texts, hidden = _cover(texts, covered("".join(texts)))
        ids = [_HIDDEN if is_hidden else number for number, is_hidden in zip(ids, hidden, strict=True)]
    fields = zip(ids, texts, row.mask.tolist(), row.template.tolist(), strict=True)
    return [Token(id=number, text=text, trained=trained, template=added) for number, text, trained, added in fields]


def _cover(texts: list[str], spans: Sequence[tuple[int, int]]) -> tuple[list[str], list[bool]]:
    """Each character of a span as a dot, and which tokens hold one: their numbers would say the same as the text."""
    joined = list("".join(texts))
    for start, end in spans:
        joined[start:end] = _COVER * (end - start)
    pieces, hidden, cursor = [], [], 0
    for text in texts:
        piece = "".join(joined[cursor : cursor + len(text)])
        cursor += len(text)
        pieces.append(piece)
        hidden.append(piece != text)
    return pieces, hidden
