"""Where a plan's facts come from: model and data where they can be read, else a config.json and assumptions.

Assumptions are listed: a plan is as good as its facts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_api.contract import Progress, SurveyAnswer
from finetune_api.data import DataSpec
from finetune_api.findings import DataReport
from finetune_api.planner.facts import DataFacts, ModelShape, PlanFacts
from finetune_api.planner.shape import shape_of
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import PlanStatus

from finetune_cli import survey
from finetune_cli.errors import CliError
from finetune_cli.reach import Reach, data_of, model_of
from finetune_cli.text import advised, count, number

TOKENS_PER_ROW = 512
BYTES_PER_TOKEN = 4
"""Of text as tokenizers of the last years cut it, when only the files' size is known."""

Seen = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Guesses:
    """What the command line gives in place of what cannot be read."""

    model_config: Path | None = None
    rows: int | None = None
    tokens_per_row: int | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """`decided` and `measured` are set where model and data were both read. `notes` list assumptions."""

    facts: PlanFacts
    decided: dict[str, Any] | None = None
    measured: PlanStatus | None = None
    notes: list[str] = field(default_factory=list)


def gather(spec: FineTuneJobSpec, reach: Reach, guesses: Guesses, seen: Seen) -> Known:
    """All that can be known of model and data from here. Raises CliError with what to give."""
    blind = survey.missing()
    no_model = reach.hindrance(model_of(spec))
    no_data = blind or reach.hindrance(data_of(spec))
    if not (guesses.model_config or guesses.rows or no_model or no_data):
        answer = survey.survey(survey.request(reach, spec=spec), seen)
        _refused(answer)
        if answer.facts is None:
            raise CliError("reading model and data gave no facts")
        return Known(answer.facts, answer.decided, answer.plan)
    notes: list[str] = []
    task, shape = _model(spec, reach, guesses, no_model, blind, seen)
    data = _data(spec, reach, guesses, no_data, notes, seen)
    return Known(PlanFacts(model=shape, data=data, task=task), notes=notes)


def _model(
    spec: FineTuneJobSpec, reach: Reach, guesses: Guesses, hindrance: str | None, blind: str | None, seen: Seen
) -> tuple[str, ModelShape]:
    task = spec.model.task or "causal-lm"
    if guesses.model_config is not None:
        return task, _from_config(guesses.model_config)
    if hindrance is not None:
        raise CliError(
            f"the model cannot be seen from here: {hindrance}, or name a config.json of its kind with --model-config"
        )
    if blind is not None:
        if spec.model.parsed.remote:
            raise CliError(
                f"the model cannot be fetched: {blind}, or name a config.json of its kind with --model-config"
            )
        return task, _from_config(spec.model.parsed.on_disk(reach.claims_root or "/") / "config.json")
    answer = survey.survey(survey.request(reach, spec=spec, rows=False), seen)
    _refused(answer)
    if answer.model is None:
        raise CliError("reading the model gave no facts")
    return answer.task or task, answer.model


def _from_config(file: Path) -> ModelShape:
    """Parameters are counted by formula; the size of weights next to it is taken from them."""
    try:
        config = json.loads(file.read_bytes())
        if not isinstance(config, dict):
            raise ValueError("it is no object")
        size = sum(weights.stat().st_size for weights in file.parent.glob("*.safetensors"))
        return shape_of(config, weight_bytes=size)
    except OSError as error:
        raise CliError(f"{file}: {error.strerror}") from None
    except (ValueError, TypeError) as error:
        raise CliError(f"{file}: not a model's config.json: {error}") from None


def _data(
    spec: FineTuneJobSpec, reach: Reach, guesses: Guesses, hindrance: str | None, notes: list[str], seen: Seen
) -> DataFacts:
    if guesses.rows is not None:
        per_row = guesses.tokens_per_row or TOKENS_PER_ROW
        notes.append(f"the data was not read: {count(guesses.rows, 'row')} of {number(per_row)} tokens are assumed")
        return guessed(spec.data, guesses.rows, per_row)
    if hindrance is not None:
        raise CliError(f"the data cannot be seen from here: {hindrance}, or guess with --rows and --tokens-per-row")
    answer = survey.survey(survey.request(reach, data=spec.data), seen)
    _refused(answer)
    if answer.report is None:
        raise CliError("reading the data gave no report")
    per_row = guesses.tokens_per_row or _tokens_per_row(answer.report)
    notes.append(f"without the model's tokenizer, {number(per_row)} tokens a row are assumed")
    usable = answer.report.valid_rows / max(1, answer.report.rows)
    train, validation, test = (round(_rows(answer.report, part) * usable) for part in ("train", "validation", "test"))
    return guessed(spec.data, max(1, train), per_row, validation, test)


def guessed(data: DataSpec, rows: int, per_row: int, named_validation: int = 0, named_test: int = 0) -> DataFacts:
    """`rows` of data.train, of `per_row` tokens each, and one as long as may be. Parts that are named cost data.train no row.

    `named_*`: rows of the files of data.validation and data.test; 0: as many as the split would give them.
    """
    per_row = min(per_row, data.max_length or per_row)
    longest = data.max_length or 2 * per_row
    validation, test = round(rows * data.split.validation), round(rows * data.split.test)
    train = max(1, rows - (0 if data.validation else validation) - (0 if data.test else test))
    lengths = [(longest, 1)] if train == 1 or longest == per_row else [(per_row, train - 1), (longest, 1)]
    if longest == per_row:
        lengths = [(per_row, train)]
    return DataFacts(
        rows=train,
        validation_rows=named_validation or validation,
        test_rows=named_test or test,
        tokens=sum(length * n for length, n in lengths),
        longest=longest,
        lengths=lengths,
        bytes=rows * per_row * BYTES_PER_TOKEN,
    )


def _tokens_per_row(report: DataReport) -> int:
    size = sum(file.bytes for file in report.files if file.part == "train")
    return max(1, round(size / BYTES_PER_TOKEN / max(1, _rows(report, "train"))))


def _rows(report: DataReport, part: str) -> int:
    return sum(file.rows for file in report.files if file.part == part)


def _refused(answer: SurveyAnswer) -> None:
    """Raises CliError with the sentence that would end the job."""
    if answer.problem is not None:
        raise CliError(advised(answer.problem.message, answer.problem.remedy))
    if answer.report is not None and answer.report.refused:
        raise CliError(advised(answer.report.refused, answer.report.refused_remedy))
