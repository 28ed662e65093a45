"""What is looked for in data: every check's code, how much it matters, and what to do. Codes are part of the API.

The one table that the trainer, `ftj`, the CRD and the docs read. How each is found is the trainer's affair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Severity = Literal["Error", "Warning", "Info"]
"""Error: the row cannot be used, or the data as a whole is refused. Warning: somebody should look. Info: good to know."""
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
"""The worst first."""

CheckCode = Literal[
    # rows that cannot be used
    "InvalidJson",
    "InvalidEncoding",
    "UnknownFormat",
    "MixedFormats",
    "PreferencePairs",
    "MissingField",
    "EmptyField",
    "WrongType",
    "InvalidRole",
    "InvalidTurnOrder",
    "TemplateMismatch",
    "UnwritableAnswer",
    "NothingToTrain",
    "RowTooLarge",
    # the data as a whole
    "TooFewExamples",
    "TooLong",
    "ExactDuplicates",
    "NearDuplicates",
    "ConflictingAnswers",
    "Leakage",
    "NearLeakage",
    "LowDiversity",
    "DominantTemplate",
    "DominantLabel",
    "LabelImbalance",
    "LanguageMix",
    "Boilerplate",
    "Refusals",
    "Repetition",
    "Pii",
    "Secrets",
    "ToxicTerms",
    "DemographicImbalance",
    "StereotypeAssociation",
    "SpecialTokens",
    "ConsecutiveAnswers",
    "OmittedTurns",
    "UntrainedPrompt",
    "UnknownCharacters",
]

Fix = Literal[
    "DropInvalid", "DropDuplicates", "DropNearDuplicates", "RedactPii", "RedactSecrets", "Rebalance", "Truncate"
]
"""What may be mended on request."""


@dataclass(frozen=True, slots=True)
class Check:
    """`severity` unless the spec says otherwise. `finds` and `remedy` are whole clauses for people."""

    code: CheckCode
    severity: Severity
    finds: str
    remedy: str
    fix: Fix | None = None

    @property
    def of_rows(self) -> bool:
        """Whether a row with it cannot be used, which data.checks.maxInvalidFraction counts."""
        return self.code in ROW_CODES


ROW_CODES: tuple[CheckCode, ...] = get_args(CheckCode)[:14]

CHECKS: dict[CheckCode, Check] = {
    check.code: check
    for check in (
        Check("InvalidJson", "Error", "a line is not JSON, or not an object with fields", "write one JSON object a line", "DropInvalid"),
        Check("InvalidEncoding", "Error", "text that is not UTF-8, NUL bytes, half a surrogate pair", "save the file as UTF-8", "DropInvalid"),
        Check("UnknownFormat", "Error", "a row whose fields belong to no known format", "rename its fields, or set spec.data.format", "DropInvalid"),
        Check("MixedFormats", "Error", "a row in another format than the others", "keep each format in a job of its own, or convert the rows", "DropInvalid"),
        Check("PreferencePairs", "Error", "pairs of a chosen and a rejected answer", "keep the chosen answers: write them as messages, or as prompt and completion", "DropInvalid"),
        Check("MissingField", "Error", "a field that the format needs is absent", "add the field", "DropInvalid"),
        Check("EmptyField", "Error", "a field without text", "fill it, or leave the row out", "DropInvalid"),
        Check("WrongType", "Error", "a value that its field cannot have, such as a number where text belongs", "write a value that the field can have", "DropInvalid"),
        Check("InvalidRole", "Error", "a turn with an unknown role", "use system, user, assistant or tool", "DropInvalid"),
        Check("InvalidTurnOrder", "Error", "turns in an order that no conversation has", "begin with system or user, end with assistant", "DropInvalid"),
        Check("TemplateMismatch", "Error", "a row that the chat template cannot render, or whose last answer it cuts", "set spec.data.template to one that writes the whole row, or correct the row", "DropInvalid"),
        Check("UnwritableAnswer", "Error", "text to train on with characters that the tokenizer cannot write", "replace them, or choose a model whose tokenizer has them", "DropInvalid"),
        Check("NothingToTrain", "Error", "a row without a token to train on", "add an answer, or leave the row out", "DropInvalid"),
        Check("RowTooLarge", "Error", "a row of more than 64 MiB", "cut it into several rows", "DropInvalid"),
        Check("TooFewExamples", "Error", "fewer rows to train on than spec.data.checks.minExamples", "add examples, or lower minExamples"),
        Check("TooLong", "Warning", "rows longer than spec.data.maxLength", "raise spec.data.maxLength, or set spec.data.overlong: drop", "Truncate"),
        Check("ExactDuplicates", "Warning", "duplicates of an earlier row", "drop them", "DropDuplicates"),
        Check("NearDuplicates", "Warning", "near duplicates of an earlier row", "drop them", "DropNearDuplicates"),
        Check("ConflictingAnswers", "Warning", "one prompt with several different answers", "keep the answer that you want"),
        Check("Leakage", "Warning", "rows of validation or test that are also in train", "remove them from one side"),
        Check("NearLeakage", "Warning", "rows of validation or test that are almost the same in train", "remove them from one side"),
        Check("LowDiversity", "Warning", "few different words for so many rows", "add other examples: the model learns to repeat these"),
        Check("DominantTemplate", "Info", "most prompts begin with the same words", "check that prompts in production begin the same way"),
        Check("DominantLabel", "Warning", "one label on most rows", "add rows of the others", "Rebalance"),
        Check("LabelImbalance", "Info", "labels with far fewer rows than others", "add rows of them", "Rebalance"),
        Check("LanguageMix", "Info", "rows in another language than most", "check that they belong here"),
        Check("Boilerplate", "Info", "answers that end or begin with the same sentence", "remove it, unless the model should always say it"),
        Check("Refusals", "Warning", "answers that refuse", "leave them out, unless the model should refuse"),
        Check("Repetition", "Warning", "a text that repeats itself for long", "cut it: a model learns never to stop"),
        Check("Pii", "Warning", "addresses, phone, card or identity numbers", "redact them", "RedactPii"),
        Check("Secrets", "Warning", "keys, tokens and passwords", "revoke them, and redact them", "RedactSecrets"),
        Check("ToxicTerms", "Warning", "insults and slurs", "leave the rows out, unless the model should know them"),
        Check("DemographicImbalance", "Info", "terms of one group far more often than those of others", "check whether the data represents its users"),
        Check("StereotypeAssociation", "Info", "groups that appear with some words far more often than others", "read the rows that are named"),
        Check("ConsecutiveAnswers", "Warning", "an assistant turn right after another one", "join them: the model is trained to stop after the first"),
        Check("SpecialTokens", "Info", "text that the tokenizer reads as one of its special tokens", "check that this is intended"),
        Check("OmittedTurns", "Warning", "system or user turns that the chat template does not write", "set spec.data.template to one that writes them, or move their text to another turn"),
        Check("UntrainedPrompt", "Warning", "answers that do not begin as the chat template's generation prompt does, for instance with <think>", "set spec.data.templateArguments or spec.data.template so that servers prompt as the rows were trained"),
        Check("UnknownCharacters", "Warning", "prompts with characters that the tokenizer does not have", "replace them, or choose a model whose tokenizer has them: this one reads all of them as the same unknown token"),
    )
}  # fmt: skip


def severity_of(code: CheckCode, *, fail: tuple[str, ...] | list[str] = ()) -> Severity:
    """How much a finding matters under `data.checks.fail`."""
    return "Error" if code in fail else CHECKS[code].severity
