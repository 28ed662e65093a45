"""Which rows are shown, and how: the shortest, the middle one, the longest, one of several turns and one that was cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

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


_KINDS: dict[str, Callable[[Seen], bool]] = {
    "turns": lambda row: row.example.messages is not None and len(row.example.messages) > 3,
    "cut": lambda row: row.is_cut,
}
_ORDER = ("shortest", "middle", "longest", *_KINDS)


class Samples:
    """Keeps the first row of each bin of lengths, since nobody knows the middle before the end."""

    def __init__(self) -> None:
        self._by_length: dict[int, _Kept] = {}
        self._counts: dict[int, int] = {}
        self._special: dict[str, _Kept] = {}
        self._lowest, self._highest = 1 << 62, -1

    def offer(self, batch: Sequence[Seen], offsets: np.ndarray, template: np.ndarray) -> None:
        """`offsets` of the rows' tokens, int64 of shape [rows + 1]; `template`: which of these are not the rows' own, bool of shape [tokens]."""
        lengths = np.diff(offsets)

        def keep(number: int) -> _Kept:
            return _kept(batch[number], template[offsets[number] : offsets[number + 1]])

        sizes, first, counts = np.unique(lengths, return_index=True, return_counts=True)
        for length, number, count in zip(sizes.tolist(), first.tolist(), counts.tolist(), strict=True):
            place = bin_start(length)
            self._counts[place] = self._counts.get(place, 0) + count
            if place not in self._by_length:
                self._by_length[place] = keep(number)
        if sizes[0] < self._lowest:
            self._lowest, self._special["shortest"] = int(sizes[0]), keep(int(first[0]))
        if sizes[-1] > self._highest:
            self._highest, self._special["longest"] = int(sizes[-1]), keep(int(first[-1]))
        for name, is_one in _KINDS.items():
            if name not in self._special:
                number = next((number for number, row in enumerate(batch) if is_one(row)), None)
                if number is not None:
                    self._special[name] = keep(number)

    def shown(
        self, spelling: Spelling, names: Sequence[str], covered: Callable[[str], Sequence[Sequence[Any]]] | None
    ) -> list[ProvenRow]:
        kept: dict[str, _Kept | None] = {**self._special, "middle": self._middle()}
        chosen: dict[tuple[int, ...], _Kept] = {}
        for name in _ORDER:
            if (row := kept.get(name)) is not None:
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


def _tokens(row: _Kept, spelling: Spelling, covered: Callable[[str], Sequence[Sequence[Any]]] | None) -> list[Token]:
    ids = row.ids.tolist()
    texts = spelling.shown(ids)
    if covered is not None:
        for place in _hidden(spelling.pieces(ids), covered):
            ids[place], texts[place] = _HIDDEN, _COVER * len(texts[place])  # the number would say the same as the text
    fields = zip(ids, texts, row.mask.tolist(), row.template.tolist(), strict=True)
    return [Token(id=number, text=text, trained=trained, template=added) for number, text, trained, added in fields]


def _hidden(pieces: list[bytes], covered: Callable[[str], Sequence[Sequence[Any]]]) -> list[int]:
    """Places of the tokens that share a byte with what must not be shown."""
    text = b"".join(pieces).decode("utf-8", errors="surrogateescape")
    ends = np.cumsum([len(piece) for piece in pieces])
    hidden: list[int] = []
    for start, end, *_ in covered(text.encode("utf-8", errors="replace").decode() if _is_broken(text) else text):
        low, high = (len(text[:place].encode("utf-8", errors="surrogateescape")) for place in (start, end))
        hidden += range(int(np.searchsorted(ends, low, "right")), int(np.searchsorted(ends, high, "left")) + 1)
    return hidden


def _is_broken(text: str) -> bool:
    """Whether some bytes are no characters, each of which is half a surrogate pair then."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
