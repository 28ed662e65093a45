"""The proof's fragment of the report: nothing of the data becomes markup, and every token's kind is told."""

from __future__ import annotations

from finetune_api.findings import Proof, ProvenRow, Token
from finetune_trainer.proof import html

TEXTS = ("<b>&", " a\n", "\t", "\u202ex", "end")


def proof(**fields) -> Proof:
    tokens = [
        Token(id=number, text=text, trained=number > 2, template=number == 4) for number, text in enumerate(TEXTS)
    ]
    row = ProvenRow(file="<x>.jsonl", line=3, tokens=tokens, length=9)
    return Proof(**{"rows": 2, "trained_tokens": 1200, "masked_tokens": 800, "template_tokens": 5, "end_of_turn": "<|im_end|>", "samples": [row], **fields})  # fmt: skip


def test_data_is_escaped_and_white_space_is_visible():
    page = html.fragment(proof())
    assert "<b>" not in page
    assert "&lt;b&gt;&amp;" in page
    assert "&lt;x&gt;.jsonl:3" in page
    assert "&lt;|im_end|&gt; ends each answer" in page
    assert '<span class="tok" title="1"><span class="sp">·</span>a<span class="sp">↵\n</span></span>' in page
    assert "\u202e" not in page, "marks that turn the direction of text would garble the page"
    assert "\\u202e" in page
    assert '<span class="tok trained template" title="4">end</span>' in page
    assert "and 4 more tokens" in page


def test_the_sentence_has_the_numbers():
    assert html.sentence(proof()) == (
        "Asserted for every one of 2 rows: some tokens are trained, the end of each answer is, and prompts that should be masked are not. "
        "1,200 of 2,000 tokens (60%) are trained. <|im_end|> ends each answer and is trained. The chat template adds 5 tokens."
    )
    assert html.sentence(proof(rows=1, trained_tokens=0)) == (
        "Asserted for the only row: 800 tokens are read, and none is a training target."
    )
