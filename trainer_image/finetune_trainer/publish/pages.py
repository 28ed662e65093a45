"""The model card and the report: facts in, text out. Data is untrusted, so every template escapes what it is given."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from finetune_trainer.data.lengths import bin_width
from finetune_trainer.data.shards import SPLITS
from finetune_trainer.publish import curves, differences
from finetune_trainer.publish.curves import Series
from finetune_trainer.publish.facts import Facts
from finetune_trainer.publish.verdict import judge

_TEMPLATES = Path(__file__).parent / "templates"
_INVALID_SHOWN = 20
_CARD_SAMPLES = 3


def report(facts: Facts) -> str:
    """One HTML file that needs nothing else: no script, no request, and a policy that forbids both."""
    return (
        _environment(autoescape=True)
        .get_template("report.html")
        .render(
            **_common(facts),
            loss_chart=_loss_chart(facts),
            rate_chart=_rate_chart(facts),
            length_chart=_length_chart(facts.prepared.get("lengths", [])),
            best=_best(facts.history),
            samples=[_sample(sample) for sample in facts.evaluation.get("samples", ())],
            invalid=facts.invalid[:_INVALID_SHOWN],
            settings=_flat(facts.effective),
            digests=_digests(facts),
        )
    )


def card(facts: Facts, *, stop: Sequence[int]) -> str:
    """README.md with Hugging Face's front matter."""
    spec = facts.config.spec
    training = facts.effective["training"]
    return (
        _environment(autoescape=False)
        .get_template("card.md")
        .render(
            **_common(facts),
            hub_base=spec.model.parsed.repo if spec.model.parsed.scheme == "hf" else None,
            hub_data=[location.parsed.repo for location in spec.data.train if location.parsed.scheme == "hf"],
            samples=list(facts.evaluation.get("samples", ()))[:_CARD_SAMPLES],
            training={name: training[name] for name in sorted(training)},
            lora=spec.method.lora.wire() if spec.method.lora else {},
            stop=list(stop),
            chat=facts.prepared["resolved"]["format"] in ("messages", "instruction"),
        )
    )


def _common(facts: Facts) -> dict[str, Any]:
    config = facts.config
    return {
        "job": config.job,
        "spec": config.spec,
        "verdict": judge(facts.evaluation),
        "evaluation": facts.evaluation,
        "data": facts.prepared["data"],
        "plan": facts.prepared["plan"],
        "resolved": facts.prepared["resolved"],
        "counts": [(name, facts.prepared["counts"][name]) for name in SPLITS],
        "notes": [*facts.prepared.get("notes", ()), *facts.evaluation.get("notes", ())],
        "base_model": facts.prepared["model"],
        "attempts": facts.attempts,
        "world": config.spec.compute.nodes * (config.spec.compute.processes_per_node or 1),
        "versions": facts.versions,
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "training_seconds": sum((a.ended or 0) - (a.started or 0) for a in facts.attempts),
    }


@lru_cache
def _environment(*, autoescape: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "count": _count,
        "duration": _duration,
        "clock": _clock,
        "fenced": _fenced,
        "inline": _inline,
        "json": json.dumps,
        "num": curves.number,
    }
    return environment


def _loss_chart(facts: Facts) -> Markup:
    train = [(line["step"], line["loss"]) for line in facts.history if _has(line, "loss")]
    validation = [(line["step"], line["eval_loss"]) for line in facts.history if _has(line, "eval_loss")]
    resumes = [(attempt.first_step, f"attempt {attempt.number}") for attempt in facts.attempts[1:]]
    return curves.lines(
        [Series("training", "train", train), Series("validation", "validation", validation, dots=True)],
        title="Loss over the steps",
        x_label="step",
        y_label="loss",
        marks=resumes,
    )


def _rate_chart(facts: Facts) -> Markup:
    points = [(line["step"], line["learning_rate"]) for line in facts.history if _has(line, "learning_rate")]
    return curves.lines(
        [Series("rate", "rate", points)],
        title="Learning rate over the steps",
        x_label="step",
        y_label="learning rate",
        height=170,
        linear=True,
    )


def _length_chart(lengths: Sequence[Sequence[int]]) -> Markup:
    """From prepare's fine bins to at most forty bars of one width."""
    if not lengths:
        return Markup("")
    fine = bin_width(lengths[-1][0])
    low, high = lengths[0][0] // fine * fine, lengths[-1][0] + fine
    width = fine * max(1, -(-(high - low) // (40 * fine)))
    counts: dict[int, int] = {}
    for length, rows in lengths:
        start = low + (length - low) // width * width
        counts[start] = counts.get(start, 0) + rows
    return curves.bars(
        [(start, start + width, counts.get(start, 0)) for start in range(low, high, width)],
        title="Rows by their length in tokens",
        x_label="tokens in a row",
    )


def _sample(sample: dict[str, Any]) -> dict[str, Any]:
    reference = sample.get("reference", "")
    answers = [
        {
            "name": name,
            "equal": sample[name].strip() == reference.strip(),
            "pieces": differences.pieces(sample[name], reference),
        }
        for name in ("base", "tuned")
        if name in sample
    ]
    return {
        "source": sample.get("source", ""),
        "prompt": differences.shorten(sample.get("prompt", "")),
        "reference": differences.shorten(reference),
        "answers": answers,
    }


def _best(history: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The validation that counts: the lowest loss, the earliest of equals."""
    return min((line for line in history if _has(line, "eval_loss")), key=lambda line: line["eval_loss"], default=None)


def _digests(facts: Facts) -> list[tuple[str, str]]:
    names = {"data": "data files", "tokenizer": "tokenizer", "template": "chat template", "code": "data code"}
    known = facts.prepared["digests"]
    return [(title, str(known[name])) for name, title in names.items() if name in known]


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Dotted names and values; lists of plain values on one line, lists of objects numbered."""
    rows: list[tuple[str, str]] = []
    for name, item in value.items():
        path = f"{prefix}{name}"
        if isinstance(item, dict):
            rows += _flat(item, f"{path}.")
        elif isinstance(item, list) and any(isinstance(part, dict) for part in item):
            for number, part in enumerate(item):
                rows += _flat(part, f"{path}[{number}].")
        else:
            rows.append(
                (
                    path,
                    ", ".join(map(str, item))
                    if isinstance(item, list)
                    else json.dumps(item)
                    if isinstance(item, bool)
                    else str(item),
                )
            )
    return rows


def _has(line: dict[str, Any], name: str) -> bool:
    return isinstance(line.get(name), int | float) and not isinstance(line.get(name), bool)


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "–" if value is None else f"{value:,.4g}"


def _duration(seconds: float) -> str:
    seconds = round(seconds)
    hours, rest = divmod(seconds, 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _clock(seconds: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds)) if seconds else "–"


def _fenced(text: str) -> str:
    """A Markdown code block that the text cannot close: its fence is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{differences.shorten(text)}\n{fence}"


def _inline(text: Any) -> str:
    """A Markdown code span on one line, safe inside a table."""
    plain = re.sub(r"\s+", " ", str(text)).replace("`", "'").replace("|", "\\|")
    return f"`{plain}`"
