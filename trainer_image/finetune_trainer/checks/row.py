"""A row as the checks see it, and rows in batches: what several checks need is worked out once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np

from finetune_trainer.data.formats import Example

PARTS = ("train", "validation", "test")
TRAIN = 0
LOOKED_AT = 20_000
"""Characters of a row that statistics of words are made of. Personal data and secrets are looked for in all of it."""

_WORD_BYTES = np.full(256, ord(" "), dtype=np.uint8)
_WORD_BYTES[[*b"abcdefghijklmnopqrstuvwxyz0123456789", *range(0x80, 0x100)]] = [
    *b"abcdefghijklmnopqrstuvwxyz0123456789",
    *range(0x80, 0x100),
]
_WORD_BYTES[0] = 0
_GAP = b"\0" * 16
_SPACES = str.maketrans(
    {sign: " " for sign in map(chr, range(128)) if not sign.isalnum()} | dict.fromkeys("“”„‘’‚«»…–—。，！？", " ")
)


class Row:
    """One valid row. `question`: what is asked first; `answers`: what is learnt; `text`: all of it, a field a line."""

    __slots__ = ("answers", "example", "file", "line", "number", "part", "prompt", "question", "text", "words")

    def __init__(self, number: int, part: str, file: int, line: int, example: Example) -> None:
        self.number, self.part, self.file, self.line, self.example = number, PARTS.index(part), file, line, example
        if example.messages is not None:
            self._of_messages(example.messages)
        elif example.label is not None:
            self.question = self.text = example.text if example.pair is None else f"{example.text}\n{example.pair}"
            self.answers: tuple[str, ...] = ()
            self.prompt: bytes | None = None
        else:
            asked = example.prompt or ""
            self.question, self.answers = asked, (example.completion,)
            self.prompt = encoded(asked) if asked else None
            self.text = f"{asked}\n{example.completion}" if asked else example.completion
        self.words = self.text[:LOOKED_AT].lower().translate(_SPACES).split()

    def _of_messages(self, messages: Sequence[Any]) -> None:
        said = [(str(turn.get("role")), turn_text(turn)) for turn in messages]
        self.question = next((text for role, text in said if role == "user"), "")
        self.answers = tuple(text for role, text in said if role == "assistant")
        self.prompt = encoded("\x1e".join(f"{role}\x1f{text}" for role, text in said[:-1]))
        thoughts = [turn["reasoning_content"] for turn in messages if "reasoning_content" in turn]
        self.text = "\n".join([text for _, text in said] + thoughts)


def turn_text(turn: Any) -> str:
    """What a turn says: its content, and whatever it calls, as JSON."""
    content = turn.get("content")
    parts = [content] if isinstance(content, str) and content else []
    if len(turn) > 2 and turn.get("tool_calls"):
        parts.append(json.dumps(turn["tool_calls"], ensure_ascii=False, default=str))
    return "\n".join(parts)


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def key(content: bytes) -> int:
    """64 bits by which equal contents are known."""
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little")


def content_key(example: Example) -> int:
    """Equal for rows that say the same, of rows for a classifier under the same label."""
    label = repr(example.label).encode("utf-8", "replace") if example.label is not None else b""
    return key(len(label).to_bytes(4, "little") + label + example.canonical())


class Batch:
    """Some hundred rows in order. `shingles` and `shingle_rows` are made when the first check asks for them."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    @cached_property
    def _shingled(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return _shingles([encoded(row.text[:LOOKED_AT].lower()).replace(b"\0", b" ") for row in self.rows])

    @property
    def shingles(self) -> np.ndarray:
        """uint64 of all rows' shingles: a hash of the 16 bytes from each word's beginning, case and punctuation apart."""
        return self._shingled[0]

    @property
    def offsets(self) -> np.ndarray:
        """uint64 of shape [rows + 1]: where each row's shingles begin."""
        return self._shingled[1]

    @property
    def longest_runs(self) -> np.ndarray:
        """int64 of shape [rows]: most bytes of one kind in a row, spaces apart."""
        return self._shingled[2]


def _shingles(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All at once: words are lower-case letters, digits and all that is not ASCII; every character of a script that
    writes without spaces begins a word.
    """
    raw = np.frombuffer(_GAP + _GAP.join(texts) + _GAP, dtype=np.uint8)
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    ends = np.cumsum(lengths + len(_GAP))  # of each row's text in `raw`
    letters = _WORD_BYTES[raw]
    space = letters == ord(" ")
    kept = np.flatnonzero(~(space[1:] & ((letters[:-1] == ord(" ")) | (letters[:-1] == 0)))) + 1
    text = np.concatenate([letters[:1], letters[kept], np.zeros(16, np.uint8)])
    ends = np.searchsorted(kept, ends) + 1
    before, here = text[:-17], text[1:-16]
    starts = np.flatnonzero((here > ord(" ")) & ((before <= ord(" ")) | (here >= 0xE0))) + 1
    words = np.ndarray((len(text) - 7,), dtype="<u8", buffer=text, strides=(1,))
    hashes = words[starts] * np.uint64(0x9E3779B97F4A7C15) ^ (words[starts + 8] + np.uint64(1)) * np.uint64(
        0xC2B2AE3D27D4EB4F
    )
    hashes ^= hashes >> np.uint64(32)
    hashes *= np.uint64(0xD6E8FEB86659FD93)
    hashes ^= hashes >> np.uint64(32)
    offsets = np.concatenate([[0], np.searchsorted(starts, ends)]).astype(np.uint64)
    return hashes, offsets, _longest_runs(text, ends)


def _longest_runs(text: np.ndarray, ends: np.ndarray) -> np.ndarray:
    changes = np.concatenate([[0], np.flatnonzero(text[1:] != text[:-1]) + 1, [len(text)]])
    lengths = np.where(text[changes[:-1]] > ord(" "), np.diff(changes), 0)
    longest = np.zeros(len(ends), dtype=np.int64)
    long = np.flatnonzero(lengths > 32)
    np.maximum.at(longest, np.minimum(np.searchsorted(ends, changes[long]), len(ends) - 1), lengths[long])
    return longest
