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
from finetune_api.findings import Proof
from finetune_api.planner.draw import spoken
from markupsafe import Markup

from finetune_trainer.data.lengths import bin_width
from finetune_trainer.data.shards import SPLITS
from finetune_trainer.proof import html as proof_html
from finetune_trainer.publish import curves, differences, usage
from finetune_trainer.publish.curves import Series
from finetune_trainer.publish.facts import Facts
from finetune_trainer.publish.verdict import judge, show
from finetune_trainer.train.history import eval_name

_TEMPLATES = Path(__file__).parent / "templates"
_INVALID_SHOWN = 20
_PIPELINES = {
    "causal-lm": "text-generation",
    "seq2seq-lm": "text2text-generation",
    "sequence-classification": "text-classification",
}
_CARD_SAMPLES = 3


def report(facts: Facts) -> str:
    """One HTML file that needs nothing else."""
    return page(
        "report.html",
        facts.findings.proof if facts.findings else None,
        **_common(facts),
        loss_chart=_loss_chart(facts),
        metric_chart=_metric_chart(facts),
        rate_chart=_rate_chart(facts),
        length_chart=_length_chart(facts.prepared.get("lengths", [])),
        samples=[
            _sample(sample, marked=facts.task != "sequence-classification")
            for sample in facts.evaluation.get("samples", ())
        ],
        invalid=facts.invalid[:_INVALID_SHOWN],
        findings=facts.findings,
        plan_status=facts.plan,
        settings=_flat(facts.effective),
        digests=_digests(facts),
    )


def page(template: str, proof: Proof | None, **values: Any) -> str:
    """HTML from its template, with everything escaped: no script, no request, and a policy that forbids both."""
    values |= {
        "date": _today(),
        "proof_html": Markup(proof_html.fragment(proof)) if proof else "",
        "proof_css": Markup(proof_html.CSS),
    }
    return _environment(autoescape=True).get_template(template).render(**values)


def card(facts: Facts, *, stop: Sequence[int]) -> str:
    """README.md with Hugging Face's front matter."""
    spec, resolved = facts.config.spec, facts.prepared["resolved"]
    training = facts.effective["training"]
    hub_base = spec.model.parsed.repo if spec.model.parsed.scheme == "hf" else None
    result = usage.Result(
        spec=spec,
        task=facts.task,
        hub_base=hub_base,
        labels=resolved.get("labels") or [],
        multi_label=bool(resolved.get("multi_label")),
        chat=resolved["format"] in ("messages", "instruction") and facts.task == "causal-lm",
        stop=list(stop),
        max_new_tokens=resolved.get("max_new_tokens") or 0,
    )
    return (
        _environment(autoescape=False)
        .get_template("card.md")
        .render(
            **_common(facts),
            date=_today(),
            hub_base=hub_base,
            usage=usage.code(result),
            pipeline=_PIPELINES[facts.task],
            adapter=spec.method.type != "full",
            made=_made(facts),
            hub_data=[location.parsed.repo for location in spec.data.train if location.parsed.scheme == "hf"],
            samples=list(facts.evaluation.get("samples", ()))[:_CARD_SAMPLES],
            method=_flat({"method": spec.method.wire()}),
            training=[(name, value) for name, value in sorted(_flat(training))],
        )
    )


def _common(facts: Facts) -> dict[str, Any]:
    config = facts.config
    return {
        "job": config.job,
        "spec": config.spec,
        "task": facts.task,
        "best": facts.best,
        "stopped_early": facts.stopped_early,
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
        "duration": spoken,
        "clock": _clock,
        "fenced": _fenced,
        "shown": show,
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


def _metric_chart(facts: Facts) -> Markup:
    """Of the metric that chose the published weights, where that is not the loss."""
    metric = (facts.best or {}).get("metric", "loss")
    name = eval_name(metric)
    points = [(line["step"], line[name]) for line in facts.history if _has(line, name)] if metric != "loss" else []
    return curves.lines(
        [Series("validation", "validation", points, dots=True)],
        title=f"{metric} on the validation rows over the steps",
        x_label="step",
        y_label=metric,
        height=200,
        linear=True,
    )


def _made(facts: Facts) -> str:
    """What was published, as the beginning of a sentence that names the base."""
    method = facts.config.spec.method
    if method.type == "full":
        freeze = method.freeze
        if freeze is None:
            return "All weights tuned of"
        if freeze.all_but_last is None:
            return f"Tuned, with {len(freeze.layers or ())} layers left as they were, from"
        return f"The last {freeze.all_but_last} layers tuned of"
    if method.prompt_tuning is not None:
        tokens = method.prompt_tuning.virtual_tokens
        where = "in every layer" if method.type == "prefix" else "before the input"
        return f"{tokens} virtual tokens {where}, for"
    return {
        "lora": "A LoRA adapter for",
        "qlora": f"A LoRA adapter, trained on {method.quantization.bits if method.quantization else 4}-bit weights (QLoRA), for",
        "dora": "A DoRA adapter for",
    }.get(method.type, f"A {method.type} adapter for")


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


def _sample(sample: dict[str, Any], *, marked: bool) -> dict[str, Any]:
    """`marked`: whether it is shown where answers depart from the reference; between labels there is nothing to mark."""
    reference = sample.get("reference", "")
    answers = [
        {
            "name": name,
            "equal": sample[name].strip() == reference.strip(),
            "pieces": differences.pieces(sample[name], reference)
            if marked
            else [differences.Piece("same", sample[name])],
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


def _today() -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())


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
