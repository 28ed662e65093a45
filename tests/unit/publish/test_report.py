"""The report and the card: true, safe with whatever the data holds, and one file that loads nothing."""

from __future__ import annotations

import html.parser
import re

import pytest
from finetune_trainer.publish import curves, pages
from finetune_trainer.publish.curves import Series
from finetune_trainer.publish.differences import pieces
from finetune_trainer.publish.facts import gather
from finetune_trainer.publish.verdict import judge
from hypothesis import given, settings
from hypothesis import strategies as st

from .conftest import CLASSIFIER, EVALUATION, classifier_history, history

NASTY = "<script>alert(1)</script><img src=x onerror=alert(1)> \" ' & {{ 7*7 }} ``` | \u202e"


class Page(html.parser.HTMLParser):
    """Tags, attributes and the visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "line", "path", "circle", "rect", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("meta", "line", "path", "circle", "rect", "br"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


@pytest.fixture
def nasty(make_run):
    sample = {
        "source": f"pvc://d/{NASTY}.jsonl:1",
        "prompt": NASTY,
        "reference": NASTY,
        "base": NASTY + "x",
        "tuned": NASTY,
    }
    prepared = {
        "invalid": [{"file": NASTY, "line": 3, "reason": NASTY}],
        "notes": [NASTY],
        "data": {"invalidRows": 1},
    }
    return gather(make_run(prepared=prepared, evaluation={**EVALUATION, "samples": [sample], "notes": [NASTY]}))


def test_data_never_becomes_markup(nasty):
    text = pages.report(nasty)
    page = Page(text)
    assert not page.open, "every tag is closed"
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in page.text, "and it is shown as it is"
    assert "{{ 7*7 }}" in page.text


def test_the_report_loads_nothing(nasty):
    text = pages.report(nasty)
    page = Page(text)
    assert not [pair for pair in page.attributes if pair[0] in ("src", "href", "xlink:href", "action")]
    assert not re.search(r"url\(|@import|https?://", text.replace(NASTY, ""))
    assert "default-src 'none'" in text


def test_the_card_keeps_data_inside_its_fences(nasty):
    card = pages.card(nasty, stop=[4])
    outside, fence = [], None
    for line in card.splitlines():
        if fence is None and (match := re.match(r"^(`{3,})", line)):
            fence = match[1]
        elif fence is not None and line == fence:
            fence = None
        elif fence is None:
            outside.append(line)
    assert fence is None
    assert "<script>" not in "\n".join(outside)


def test_the_report_says_what_happened(make_run):
    lines = history(1, 150)
    config = make_run(
        histories={1: lines, 2: history(121, 300)},
        prepared={"invalid": [{"file": "pvc://datasets/support.jsonl", "line": 41, "reason": "has a prompt but no completion"}],
                  "data": {"invalidRows": 3, "truncatedRows": 12}},
    )  # fmt: skip
    text = Page(pages.report(gather(config))).text
    for expected in (
        "The tuned model is better than its base",
        "Exact match went from 11.0% to 64.0% on 200 held-out rows",
        "22 → 128 of 200 answers",
        "3 could not be used",
        "12 lost their end",
        "pvc://datasets/support.jsonl:41",
        "has a prompt but no completion",
        "Training was interrupted 1 time",
        "attempt 2",
        "training.learningRate",
        "warehouse",
        "resolved.max_new_tokens",
        "d" * 64,
    ):
        assert expected in text, expected


def test_a_classifier_s_report_speaks_of_labels_and_of_the_metric_that_chose(make_run):
    facts = gather(make_run(**CLASSIFIER, histories={1: classifier_history()}))
    text = " ".join(Page(pages.report(facts)).text.split())
    for expected in (
        "Accuracy went from 33.0% to 90.0% on 200 held-out rows",
        "66 → 180 of 200 rows are right",
        "210 of 300",
        "Mean loss per row. Training stopped early: f1 has not improved since step 120",
        "The weights after step 120 were published, with the best validation f1, 87.0%.",
        "Validation f1, which chose the weights.",
        "Sample predictions",
        "3 labels: delivery, repair, returns.",
    ):
        assert expected in text, expected
    assert "Learnt tokens" not in text
    assert "not in the reference" not in text


def test_the_published_step_is_what_train_wrote_down(make_run):
    """Not what the curves look like: the lowest loss may be of a checkpoint that was lost."""
    facts = gather(make_run(best={"step": 90, "metric": "loss", "value": 1.25}))
    assert "The weights after step 90 were published, with the best validation loss, 1.2500." in pages.report(facts)
    assert "those after step 90, the best by validation loss (1.2500)" in pages.card(facts, stop=[4])
    never = gather(make_run(best={"step": 300, "metric": "loss", "value": None}))
    assert "The weights after step 300 were published." in pages.report(never)


def test_the_card_names_the_arguments_of_the_template(make_run):
    data = {
        "train": [{"uri": "pvc://datasets/support.jsonl"}],
        "templateArguments": {"enable_thinking": False, "a": "|x"},
    }
    card = pages.card(gather(make_run(spec={"data": data})), stop=[4])
    assert '| data.templateArguments.enable_thinking | `false` |\n| data.templateArguments.a | `"\\|x"` |\n' in card
    assert "add_generation_prompt=True, enable_thinking=False, a='|x', " in card


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ({"type": "lora"}, "A LoRA adapter for `pvc://models/base`"),
        ({"type": "qlora"}, "trained on 4-bit weights (QLoRA), for `pvc"),
        ({"type": "dora"}, "A DoRA adapter for"),
        ({"type": "prefix", "promptTuning": {"virtualTokens": 7}}, "7 virtual tokens in every layer, for"),
        ({"type": "prompt"}, "20 virtual tokens before the input, for"),
        ({"type": "full"}, "All weights tuned of"),
        ({"type": "full", "freeze": {"allButLast": 2}}, "The last 2 layers tuned of"),
    ],
)
def test_the_card_says_what_it_is_of_each_method(make_run, method, says):
    card = pages.card(gather(make_run(spec={"method": method})), stop=[4])
    assert says in card
    assert ("library_name: peft" in card) is (method["type"] != "full")
    assert f"- {method['type']}\n" in card or method["type"] == "full"


def test_a_run_without_test_rows_history_or_base_still_reports(make_run):
    config = make_run(
        evaluation={"rows": 0, "metrics": [], "samples": [], "notes": []},
        histories={},
        prepared={"lengths": [], "notes": []},
    )
    text = Page(pages.report(gather(config))).text
    assert "Nothing was measured" in text
    assert "No attempt left a history" in text
    assert "# support-bot" in pages.card(gather(config), stop=[4])


@pytest.mark.parametrize(
    ("metrics", "tone", "says"),
    [
        (
            [("exact-match", 0.1, 0.9), ("loss", 1.0, 2.0)],
            "better",
            "Exact match went from 10.0% to 90.0% on 90 held-out rows.",
        ),
        ([("exact-match", 0.9, 0.1)], "worse", "Exact match went from 90.0% to 10.0%"),
        ([("exact-match", 0.9, 0.9004)], "same", "Exact match stayed at 90.0% on 90 held-out rows."),
        (
            [("exact-match", 0.9, 0.92)],
            "same",
            "Exact match went from 90.0% to 92.0% on 90 held-out rows, which may be chance.",
        ),
        (
            [("exact-match", 0.0, 0.0), ("loss", 2.0, 1.0)],
            "better",
            "Exact match stayed at 0.0%; loss went from 2.0000 to 1.0000",
        ),
        ([("loss", 2.0, 1.999)], "same", "which may be chance"),
        ([("loss", 2.0, 1.0)], "better", "Loss went from 2.0000 to 1.0000 on 100 held-out rows."),
        ([("loss", 1.0, 2.0)], "worse", "Loss went from 1.0000 to 2.0000"),
        ([("loss", None, 1.0)], "unknown", "the base model was not measured"),
        (
            [("loss", 1.0, 0.5), ("accuracy", 0.5, 0.9)],
            "better",
            "Accuracy went from 50.0% to 90.0% on 100 held-out rows.",
        ),
        ([("accuracy", 0.9, 0.5), ("loss", 1.0, 0.5)], "worse", "Accuracy went from 90.0% to 50.0%"),
        ([("f1", 0.3, 0.8)], "better", "F1 went from 30.0% to 80.0% on 100 held-out rows."),
        ([("recall", 0.8, 0.3)], "worse", "Recall went from 80.0% to 30.0%"),
        ([("precision", 0.8, 0.82)], "same", "which may be chance"),
        (
            [("accuracy", 0.5, 0.5), ("f1", 0.4, 0.4), ("loss", 2.0, 1.0)],
            "better",
            "Accuracy stayed at 50.0%; loss went from",
        ),
        ([("perplexity", 9.0, 3.0)], "better", "Perplexity went from 9.0000 to 3.0000"),
        ([], "unknown", "no test rows"),
    ],
)
def test_the_verdict_follows_the_figures(metrics, tone, says):
    rows = [
        {"metric": name, **{k: v for k, v in (("base", base), ("tuned", tuned)) if v is not None}}
        for name, base, tuned in metrics
    ]
    verdict = judge({"rows": 100, "generatedRows": 90, "metrics": rows})
    assert verdict.tone == tone
    assert says in verdict.detail


FINITE = st.floats(allow_nan=True, allow_infinity=True)


@settings(max_examples=50, deadline=None)
@given(points=st.lists(st.tuples(st.integers(0, 10**6), FINITE), max_size=30), linear=st.booleans())
def test_any_history_draws_within_its_frame(points, linear):
    svg = curves.lines(
        [Series("training", "train", sorted(points, key=lambda p: p[0]), dots=True)],
        title="t",
        x_label="x",
        y_label="y",
        linear=linear,
    )
    if not any(abs(y) <= 1e12 for _, y in points):
        assert svg == ""
        return
    page = Page(str(svg))
    assert not page.open
    for name, value in page.attributes:
        if name in ("cx", "cy"):
            assert 0 <= float(value) <= curves.WIDTH
    assert "nan" not in svg
    assert "inf" not in svg


def test_a_spike_survives_thinning():
    points = [(step, 1.0) for step in range(50_000)]
    points[31_111] = (31_111, 5.0)
    thin = curves._thin(points)
    assert len(thin) <= 700
    assert (31_111, 5.0) in thin


@given(answer=st.text(max_size=60), reference=st.text(max_size=60))
def test_marked_pieces_give_the_answer_back(answer, reference):
    assert "".join(piece.text for piece in pieces(answer, reference) if piece.kind != "missing") == answer
