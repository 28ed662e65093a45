"""What was found in data: the record that prepare leaves, `ftj validate` prints and the report shows.

Every text in it is fit to be seen: what was found of personal data and secrets is masked before it comes here.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from finetune_api.base import ApiModel
from finetune_api.checks import CheckCode, Fix, Severity

ROWS_SHOWN = 10
"""First rows that a finding names."""


class RowRef(ApiModel):
    """A row, by its file as the user named it and its line counted from 1."""

    file: str
    line: int
    text: str | None = Field(
        default=None, description="What is wrong with it, or an excerpt of at most 200 characters."
    )


class Finding(ApiModel):
    """The result of one check over all rows."""

    code: CheckCode
    severity: Severity
    count: int = Field(description="Rows (or terms) that it was found in.")
    fraction: float | None = Field(default=None, description="Of all rows that were checked.")
    message: str = Field(description="One sentence with the numbers.")
    remedy: str
    refuses: bool = Field(default=False, description="Whether the data cannot be used because of it.")
    rows: list[RowRef] = Field(default_factory=list, max_length=ROWS_SHOWN)

    @property
    def where(self) -> str | None:
        """FILE:LINE of the first row."""
        return f"{self.rows[0].file}:{self.rows[0].line}" if self.rows else None


class Token(ApiModel):
    """One token of a row in the proof."""

    id: int
    text: str
    trained: bool
    template: bool = Field(default=False, description="Added by the chat template, not part of the row's own text.")


class ProvenRow(ApiModel):
    """A sample row as the model will see it, token by token."""

    file: str
    line: int
    tokens: list[Token] = Field(max_length=1024)
    length: int = Field(description="Tokens of the whole row, of which `tokens` may be the first.")


class Proof(ApiModel):
    """What is trained and what is masked. Asserted for every row, shown for some."""

    rows: int = Field(description="Rows for which it was asserted.")
    trained_tokens: int
    masked_tokens: int
    template_tokens: int = Field(default=0, description="Tokens that the chat template adds, over all rows.")
    end_of_turn: str | None = Field(default=None, description="The token that ends an answer; it is trained.")
    samples: list[ProvenRow] = Field(default_factory=list, max_length=8)


class FixRecord(ApiModel):
    """One fix that was asked for and what it did."""

    fix: Fix
    rows: int = Field(description="Rows that it changed, dropped or added.")
    detail: str


class FixedFile(ApiModel):
    """A file that was written beside the original."""

    original: str
    original_digest: str
    fixed: str
    fixed_digest: str


class SourceFile(ApiModel):
    """A data file that was read."""

    name: str
    part: Literal["train", "validation", "test"]
    bytes: int
    rows: int = 0
    kind: str = Field(default="jsonl", description="jsonl, json, csv, parquet; with .gz and so on where compressed.")


class DataReport(ApiModel):
    """All that was found. `refused` names the sentence that ends a job, which is the same everywhere."""

    contract: Literal[1] = 1
    files: list[SourceFile] = Field(default_factory=list)
    format: str | None = None
    evidence: str | None = Field(default=None, description="By what the format was recognised.")
    rows: int = 0
    valid_rows: int = 0
    findings: list[Finding] = Field(default_factory=list)
    fixes: list[FixRecord] = Field(default_factory=list)
    fixed_files: list[FixedFile] = Field(default_factory=list)
    proof: Proof | None = None
    refused: str | None = None
    refused_code: str | None = None
    refused_remedy: str | None = None
    seconds: float = 0
    notes: list[str] = Field(default_factory=list)
