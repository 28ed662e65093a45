"""`spec.data`: the examples."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from finetune_api.base import ApiModel, schema
from finetune_api.checks import CheckCode, Fix
from finetune_api.location import Location
from finetune_api.rules import Rule, Ruled

Fraction = Annotated[float, Field(ge=0, le=1)]
DataFormat = Literal["messages", "prompt-completion", "instruction", "text", "classification"]
LossOn = Literal["completion", "assistant", "all"]
FILE_ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".tab", ".parquet")
"""Of names of data files, in lower case."""
PACKINGS = {"gz": "gzip", "bz2": "bzip2", "xz": "xz", "zst": "zstd"}
"""Names of compressions by what they add to a file's name."""


_SET_BY_TRAINER = frozenset(
    [
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversations",
        "documents",
        "messages",
        "return_assistant_tokens_mask",
        "tools",
    ]
)


def _scalars(arguments: dict[str, Any]) -> dict[str, Any]:
    """The API server cannot check the values: a structural schema has no type for "any scalar"."""
    for name, value in arguments.items():
        if not name.isidentifier() or len(name) > 64:
            raise ValueError(f"{name} is not the name of a template variable: use letters, digits and _, at most 64")
        if name in _SET_BY_TRAINER or name.endswith("_token"):
            raise ValueError(f"{name} is set by the trainer: remove it")
        if not isinstance(value, str | int | float) or len(str(value)) > 1024:
            raise ValueError(f"{name} must be true, false, a number, or a string of at most 1024 characters")
    return arguments


TemplateArguments = Annotated[
    dict[str, Any],
    Field(max_length=32, json_schema_extra=schema(**{"x-kubernetes-preserve-unknown-fields": True})),
    AfterValidator(_scalars),
]
_SPLIT = {"train": 0.8, "validation": 0.1, "test": 0.1}


class SplitSpec(ApiModel, Ruled):
    """How `data.train` is divided when no validation or test data is named. A list that is named replaces its fraction."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            f"[{' + '.join(f'(has(self.{part}) ? self.{part} : {share})' for part, share in _SPLIT.items())}].all(s, s > 0.999 && s < 1.001)",
            "data.split: train, validation and test must add up to 1",
            lambda self: 0.999 < self.train + self.validation + self.test < 1.001,
        ),
    )

    train: float = Field(default=_SPLIT["train"], gt=0, le=1)
    validation: Fraction = _SPLIT["validation"]
    test: Fraction = _SPLIT["test"]
    seed: int = Field(
        default=42, ge=0, le=2**31 - 1, description="Which rows go where depends on the rows and this seed alone."
    )


class ChecksSpec(ApiModel):
    """What the data must satisfy before anything is trained."""

    min_examples: int = Field(default=1, ge=1, le=2**31 - 1, description="Fewest valid training examples.")
    max_invalid_fraction: Fraction = Field(
        default=0.0, description="Share of rows that may be invalid; these are left out and listed in the report."
    )
    exact_duplicates: Fraction | None = Field(
        default=None, description="Share of rows that may repeat an earlier one. Absent: only reported."
    )
    near_duplicates: Fraction | None = Field(default=None, description="The same of almost equal rows.")
    leakage: Fraction | None = Field(
        default=None,
        description="Share of validation and test rows that may be in train too, or almost. Absent: only reported.",
    )
    fail: list[CheckCode] | None = Field(
        default=None,
        min_length=1,
        max_length=40,
        description="Checks (docs/checks.md) that refuse the data when they find anything.",
    )
    ignore: list[CheckCode] | None = Field(
        default=None, min_length=1, max_length=40, description="Checks that are not made."
    )


class DataSpec(ApiModel, Ruled):
    """The examples: JSON Lines, JSON, CSV or Parquet, plain or compressed."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.lossOn) || self.lossOn == 'all' || !has(self.format) || self.format != 'text'",
            "data.lossOn must be all (or absent) for data.format text: plain text has no separate answers",
            lambda self: self.loss_on in (None, "all") or self.format != "text",
        ),
        Rule(
            "!has(self.lossOn) || !has(self.format) || self.format != 'classification'",
            "data.lossOn has no meaning for data.format classification: remove it",
            lambda self: self.loss_on is None or self.format != "classification",
        ),
    )

    train: list[Location] = Field(
        min_length=1, max_length=32, description="Files with training examples, or folders of them."
    )
    validation: list[Location] | None = Field(default=None, min_length=1, max_length=32)
    test: list[Location] | None = Field(default=None, min_length=1, max_length=32)
    split: SplitSpec = Field(default_factory=SplitSpec)
    format: DataFormat | None = Field(default=None, description="Absent: recognised from the rows' fields.")
    template: Annotated[str, Field(min_length=1, max_length=32768)] | None = Field(
        default=None, description="A chat template (Jinja) instead of the model's own. It is saved with the result."
    )
    template_arguments: TemplateArguments | None = Field(
        default=None,
        description="Variables for the chat template, such as enable_thinking: false or reasoning_effort: low; strings, numbers, true or false. Prompts have to be rendered with the same ones later: the model card shows how.",
    )
    loss_on: LossOn | None = Field(
        default=None,
        description="Which tokens are trained: the last answer (completion), every assistant turn (assistant), or everything (all). Absent: assistant for messages, all for text, else completion.",
    )
    max_length: Annotated[int, Field(ge=8, le=2**20)] | None = Field(
        default=None,
        description="Longest row in tokens; for an encoder-decoder model of its source and of its target, each for itself. Absent: the longest row, up to the model's context and 4096.",
    )
    overlong: Literal["truncate", "drop"] | None = Field(
        default=None, description="What happens to longer rows; they are counted. Absent: truncate."
    )
    packing: bool | None = Field(
        default=None,
        description="Lay rows end to end without padding; none sees another. Absent: where the model proves at start that it can, and it pays.",
    )
    checks: ChecksSpec = Field(default_factory=ChecksSpec)
    fixes: list[Fix] | None = Field(
        default=None,
        min_length=1,
        max_length=7,
        description="Fixes before training, in this order; counted in the report, the originals do not change.",
    )
