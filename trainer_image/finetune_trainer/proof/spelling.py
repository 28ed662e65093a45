"""Which bytes of a text each of its tokens stands for, found without the tokenizer's own offsets, which cost as much as encoding.

A token of a byte-level or SentencePiece-like vocabulary spells a fixed number of bytes, so that one cumulative sum
places all tokens of many rows. What such a sum cannot explain (text that is normalised, tokens that swallow spaces)
is placed by the tokenizer's offsets after all.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

_SPACE_BYTE_LEVEL, _SPACE_SENTENCEPIECE = "Ġ", "▁"
_REPLACED = len(_SPACE_SENTENCEPIECE.encode()) - 1
"""Bytes that a SentencePiece space is longer than a space."""


class Spelt(NamedTuple):
    """What the tokens of a row should spell: the text that the tokenizer was given, and begin or end tokens beside it."""

    body: bytes
    before: bytes = b""
    after: bytes = b""


@dataclass(frozen=True, slots=True)
class Positions:
    """Where the tokens of several rows stand, as if the rows' texts were laid end to end.

    `starts` and `ends` are int64 of shape [tokens], both ascending; `bases` of shape [rows] is where each text begins.
    """

    starts: np.ndarray
    ends: np.ndarray
    bases: np.ndarray

    def within(self, rows: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First and last+1 of the tokens that lie wholly in each span of a row's text (bytes)."""
        low, high = self.bases[rows] + starts, self.bases[rows] + ends
        first = np.searchsorted(self.starts, low, "left")
        last = np.minimum(np.searchsorted(self.ends, high, "right"), np.searchsorted(self.starts, high, "left"))
        return first, np.maximum(first, last)

    def touching(self, rows: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same of the tokens that share at least a byte with each span, which is not empty."""
        low, high = self.bases[rows] + starts, self.bases[rows] + ends
        first = np.searchsorted(self.ends, low, "right")
        return first, np.maximum(first, np.searchsorted(self.starts, high, "left"))


class Spelling:
    """What the tokens of one vocabulary spell."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._backend = tokenizer, tokenizer.backend_tokenizer
        kinds = set(_decoders(self._backend))
        self._bytes = kinds >= {"ByteLevel"}
        self._known = self._bytes or bool(kinds & {"Metaspace", "Replace", "ByteFallback"})
        self._fallback = "ByteFallback" in kinds
        self._forms, keeps = _unicode_forms(self._backend.normalizer)
        self._known &= keeps
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        self.lengths = np.zeros(max(vocabulary.values()) + 1, dtype=np.int64)
        self.added = np.zeros(len(self.lengths), dtype=bool)
        """Tokens that stand for themselves, as special ones do."""
        self._spaced = np.zeros(len(self.lengths), dtype=bool)
        space = _SPACE_BYTE_LEVEL if self._bytes else _SPACE_SENTENCEPIECE
        for token, number in vocabulary.items():
            self.lengths[number] = len(token) if self._bytes else self._bytes_of(token)
            self._spaced[number] = token.startswith(space)
        for number, token in self._backend.get_added_tokens_decoder().items():
            self.lengths[number] = len(token.content.encode())
            self.added[number], self._spaced[number] = True, False

    def _bytes_of(self, token: str) -> int:
        if self._fallback and len(token) == 6 and token.startswith("<0x"):
            return 1
        return len(token.encode()) - _REPLACED * token.count(_SPACE_SENTENCEPIECE)

    def pieces(self, ids: Iterable[int]) -> list[bytes]:
        """What each token spells by itself: perhaps a part of a character."""
        return [self._piece(number) for number in ids]

    def shown(self, ids: Iterable[int]) -> list[str]:
        """The same for people: a part of a character as its bytes, `\\xe2\\x80`."""
        return [piece.decode("utf-8", errors="backslashreplace") for piece in self.pieces(ids)]

    def _piece(self, number: int) -> bytes:
        token = self._backend.id_to_token(number)
        if token is not None and self.added[number]:
            return token.encode()
        if token is None or not self._known:
            return self._tokenizer.decode([number]).encode()
        if self._bytes:
            return bytes(_BYTES.get(character, ord("?")) for character in token)
        if self._fallback and len(token) == 6 and token.startswith("<0x"):
            return bytes([int(token[3:5], 16)])
        return token.replace(_SPACE_SENTENCEPIECE, " ").encode()

    def place(self, ids: np.ndarray, offsets: np.ndarray, texts: Sequence[Spelt]) -> Positions:
        """`ids` of all rows, one after another, row r from offsets[r] to offsets[r+1]; `texts[r]` is what it should spell."""
        sizes = np.array([len(text.before) + len(text.body) + len(text.after) for text in texts], dtype=np.int64)
        bases = np.cumsum(sizes) - sizes
        lengths = self.lengths[ids]
        unexplained = np.add.reduceat(lengths, offsets[:-1]) != sizes
        if unexplained.any() and self._known:
            unexplained = self._without_prefixes(ids, offsets, lengths, sizes)
        if self._forms:
            unexplained |= np.array([self._is_rewritten(text.body) for text in texts])
        ends = np.cumsum(lengths)
        ends += np.repeat(bases - (ends - lengths)[offsets[:-1]], np.diff(offsets))
        starts = ends - lengths
        for row in np.flatnonzero(unexplained | (not self._known)):
            here = slice(offsets[row], offsets[row + 1])
            starts[here], ends[here] = (places + bases[row] for places in self._asked(ids[here], texts[row]))
        return Positions(starts, ends, bases)

    def _is_rewritten(self, body: bytes) -> bool:
        return not body.isascii() and not all(unicodedata.is_normalized(form, body.decode()) for form in self._forms)

    def _without_prefixes(
        self, ids: np.ndarray, offsets: np.ndarray, lengths: np.ndarray, sizes: np.ndarray
    ) -> np.ndarray:
        """Take off the space that some tokenizers put before a text, and again behind each special token; in `lengths`.

        Gives the rows, bool of shape [rows], which that does not explain.
        """
        begins = np.zeros(len(ids), dtype=bool)
        begins[offsets[:-1]] = True
        behind = begins.copy()
        behind[1:] |= self.added[ids[:-1]]
        too_long = np.add.reduceat(lengths, offsets[:-1]) - sizes
        for candidates in (behind & self._spaced[ids], begins & self._spaced[ids]):
            count = np.add.reduceat(candidates.astype(np.int64), offsets[:-1])
            explained = (too_long > 0) & (too_long == count)
            lengths -= candidates & np.repeat(explained, np.diff(offsets))
            too_long[explained] = 0
        return too_long != 0

    def _asked(self, ids: np.ndarray, text: Spelt) -> tuple[np.ndarray, np.ndarray]:
        """Starts and ends in bytes by the tokenizer's own offsets. Raises ValueError when it gives other ids now."""
        body, wanted = text.body.decode(), ids.tolist()
        for special in (bool(text.before or text.after), not (text.before or text.after)):
            encoding = self._backend.encode(body, add_special_tokens=special)
            if (found := _shared(encoding.ids, wanted)) is not None:
                break
        else:
            raise ValueError("the tokenizer gives other tokens for one text at another time")
        shift, shared = found
        spans = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        spans = (spans if body.isascii() else _byte_positions(body)[spans]) + len(text.before)
        size = len(text.before) + len(text.body) + len(text.after)
        starts, ends = np.full((2, len(ids)), size, dtype=np.int64)
        starts[:shared], ends[:shared] = spans[shift : shift + shared].T
        last = len(ids) - 1
        if (
            last and self.added[ids[last]] and ends[last] < ends[last - 1]
        ):  # an end token of the tokenizer's own is at 0
            starts[last] = ends[last] = size
        return np.maximum.accumulate(starts), np.maximum.accumulate(ends)


def _shared(given: list[int], wanted: list[int]) -> tuple[int, int] | None:
    """How many of `given` precede `wanted`, and how many of it they share: all but an end token of ours."""
    for shift in (0, 1):
        shared = min(len(given) - shift, len(wanted))
        if shared >= len(wanted) - 1 and given[shift : shift + shared] == wanted[:shared]:
            return shift, shared
    return None


def _byte_positions(text: str) -> np.ndarray:
    """int64 of shape [characters + 1]: the byte at which each character begins."""
    points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    widths = 1 + (points > 0x7F) + (points > 0x7FF) + (points > 0xFFFF)
    return np.concatenate([[0], np.cumsum(widths)]).astype(np.int64)


def _decoders(backend: Any) -> list[str]:
    if backend.decoder is None:
        return []
    state = json.loads(backend.decoder.__getstate__())
    return [step["type"] for step in state.get("decoders", [state])]


def _unicode_forms(normalizer: Any) -> tuple[list[Any], bool]:
    """Unicode forms that text is put into, and whether nothing else is done to it but that spaces become signs."""
    if normalizer is None:
        return [], True
    state = json.loads(normalizer.__getstate__())
    forms, keeps = [], True
    for step in state.get("normalizers", [state]):
        if step["type"] in ("NFC", "NFD", "NFKC", "NFKD"):
            forms.append(step["type"])
        else:
            keeps &= step["type"] == "Prepend" or (
                step["type"] == "Replace"
                and (step["pattern"], step["content"]) == ({"String": " "}, _SPACE_SENTENCEPIECE)
            )
    return forms, keeps


def _alphabet() -> dict[str, int]:
    """The characters by which byte-level vocabularies write bytes (GPT-2's `bytes_to_unicode`)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES = _alphabet()
