"""What reading gives: a row, parsed or with its fault, and the fault of a file as a whole."""

from __future__ import annotations

from typing import Any, NamedTuple

from finetune_api.checks import CheckCode

from finetune_trainer.errors import BadInput

MAX_ROW_BYTES = 64 * 1024 * 1024

FIELDS = frozenset(
    {"messages", "conversations", "conversation", "prompt", "completion", "instruction", "input", "output", "text",
     "text_pair", "label", "labels", "chosen", "rejected", "question", "answer", "response"}
)  # fmt: skip
"""Names by which a table is known: those that examples are made of, or are often called."""


class Unreadable(ValueError):
    """A file as a whole is at fault. `line` is where, if it is at one place; `remedy` says what to do."""

    def __init__(
        self, message: str, remedy: str | None = None, *, code: CheckCode = "InvalidJson", line: int | None = None
    ) -> None:
        super().__init__(message)
        self.remedy = remedy
        self.code = code
        self.line = line

    def refusal(self, name: str) -> BadInput:
        """Of the file that the user knows by this name."""
        where = name if self.line is None else f"{name}:{self.line}:"
        return BadInput(f"{where} {self}", code="InvalidData", remedy=self.remedy)


class RawRow(NamedTuple):
    """`value` is the parsed row, or None with `fault` and its `code` set.

    `line` counts from 1: of a table's record the first of its lines, of Parquet the number of the row. `offset` and
    `length` are bytes of the unpacked text; -1 and 0 where a row is no stretch of text (tables, Parquet).
    """

    line: int
    offset: int
    length: int
    value: dict[str, Any] | None
    fault: str | None = None
    code: CheckCode | None = None
    remedy: str | None = None


def too_large(line: int, offset: int, length: int) -> RawRow:
    """A row that was not read, because it is longer than MAX_ROW_BYTES."""
    return RawRow(line, offset, length, None, f"is longer than {MAX_ROW_BYTES >> 20} MiB", "RowTooLarge")
