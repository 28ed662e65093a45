"""Personal data and secrets: what is found, what only looks like them, and that nothing of them is ever shown."""

from __future__ import annotations

import json
import random
import string

import pytest
from finetune_api import secret_patterns
from finetune_api.data import ChecksSpec
from finetune_trainer.checks import pii
from finetune_trainer.checks.masking import EXCERPT, covered, excerpt, masked, written
from finetune_trainer.checks.suite import Suite
from finetune_trainer.data.formats import Example
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.checks.conftest import prose

_RANDOM = random.Random(7)


def noise(length: int, letters: str = string.ascii_letters + string.digits) -> str:
    """As a service would draw it. Made here, so that no scanner takes this file for a leak."""
    return "".join(_RANDOM.choice(letters) for _ in range(length))


UPPER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
HEX = "0123456789abcdef"

PERSONAL = {
    # kind: what is one
    "email": ["jane.doe@acme-harbour.io", "j_d+news@mail.acme.co.uk", "jörg@müller.de", "o'neil@acme.ie"],
    "phone": [
        "+49 30 901820",
        "+44 (0)20 7946 1234",
        "+1 212-736-5000",
        "0049 30 901820",
        "(415) 555-2671",
        "212.736.5000",
        "+33 1 42 68 53 00",
    ],
    "card": ["4539 1488 0343 6467", "5425233430109903", "3725-123456-78902"],
    "iban": ["DE75512108001245126199", "GB33 BUKB 2020 1555 5555 55", "FR7630006000011234567890189"],
    "national-id": [
        "536-90-4399",
        "529.982.247-25",
        "MRTMTT25D09F205Z",
        "54362315K",
        "756.9217.0769.85",
        "11010519491231002X",
        "850709-9805",
    ],
}
SECRETS = {
    "aws-key": ["AKIA" + noise(16, UPPER), "ASIA" + noise(16, UPPER)],
    "github-token": ["ghp_" + noise(36), "github_pat_" + noise(22) + "_" + noise(59)],
    "gitlab-token": ["glpat-" + noise(20)],
    "slack-token": ["xoxb-" + noise(12, string.digits) + "-" + noise(24)],
    "google-key": ["AIza" + noise(35), "GOCSPX-" + noise(28)],
    "openai-key": ["sk-" + noise(48), "sk-proj-" + noise(40)],
    "anthropic-key": ["sk-ant-api03-" + noise(80)],
    "huggingface-token": ["hf_" + noise(34)],
    "stripe-key": ["sk_live_" + noise(24), "rk_test_" + noise(24)],
    "npm-token": ["npm_" + noise(36)],
    "pypi-token": ["pypi-AgEIcHlwaS5vcmc" + noise(60)],
    "service-token": ["SG." + noise(22) + "." + noise(43), "dapi" + noise(32, HEX), "hvs." + noise(40)],
    "private-key": [f"-----BEGIN {kind}PRIVATE KEY-----\n{noise(64)}\n{noise(64)}\n-----END {kind}PRIVATE KEY-----" for kind in ("", "RSA ")],
    "jwt": ["eyJ" + noise(30) + ".eyJ" + noise(50) + "." + noise(43)],
}  # fmt: skip
WITHIN = {
    # kind: (text, what of it is one)
    "url-password": ("postgres://admin:{}@db.acme.io:5432/shop", noise(14)),
    "credential": ('{{"api_key": "{}"}}', noise(28)),
    "aws-key": ("aws_secret_access_key = {}", noise(40)),
    "phone": ("Tel.: {}, ask for Anna", "030 901820"),
    "national-id": ("Aadhaar {}.", "2341 2341 2346"),
}

HARMLESS = [
    "There are 48/2 = <<48/2=24>>24 clips, 1,234,567 in all, 3.14159265358979 or 4111111111111111.",
    "user@example.com, noreply@acme.io, git@github.com:acme/shop.git, logo@2x.png, @jane, a @ b, x@y",
    "Order 4539148803436468 of 2023-10-12 17:05:59.123456, ISBN 978-3-16-148410-0, 192.168.100.200, v1.2.3.4",
    "Call 415-555-0132 or 555-1212; +1 555 0100; 123-456-7890; +99999999999; 0800 in the morning",
    "4111 1111 1111 1111 and 4242424242424242 are for tests; 378282246310005 too; IBAN DE89 3704 0044 0532 0130 00",
    "123-45-6789, 000-12-3456, 12345678Z, 111.111.111-12, a number 123456782 and 44051401359",
    "1600000000000 ms, 9007199254740993, 18446744073709551615, 0x1234567890abcdef, 1e1234567890",
    "7,473,000 - 1,319,000 = 6,154,000; 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; 10 20 30 40 50 60 70",
    "AKIAIOSFODNN7EXAMPLE, wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY, sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "api_key = YOUR_API_KEY_GOES_HERE_PLEASE1, token=$TOKEN, password: hunter2, secret = settings.client_secret_2",
    "ghp_" + "x" * 36 + ", hf_" + "a" * 34 + ", glpat-YOUR-TOKEN-GOES-HERE",
    "postgres://user:password@localhost/db, https://acme.io:8443/@jane, http://a:b@c, redis://:${PASSWORD}@host",
    "A key begins with -----BEGIN PRIVATE KEY----- and ends with -----END PRIVATE KEY-----.",
    "sk-learn, the sk-cube-grid-of-many-parts-in-one-long-name, task-" + "a1" * 20 + ", risk-free",
    "commit 3f786850e387550fdab836ed7e6dc881de23001b, uuid 123e4567-e89b-12d3-a456-426614174000, eyJhbGciOiJIUzI1NiJ9",
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAUAAAAFCAYAAACNbyblAAAAHElEQVQI12P4",
    "Clause 252.227-7013 (c) (1), 425-555-5555, git://[path-to-repo[:]][ref@]path, github://org:repo@sha, smb://me:mypassword@host.io",
    '"NextToken": "CpHNsscimcV5oH7bSbub03CI2Qms5", "token": "eyJ2IjoiMSIsInMiOjEsImMiOi...", "V1Secret": ".models.v1_secret"',
    "the token: a keyword, password=None, key=lambda row: row[0], secrets.token_urlsafe(32)",
]


def kinds(text: str) -> set[str]:
    return {span.kind for span in covered(text)}


@pytest.mark.parametrize("kind", [*PERSONAL, *SECRETS])
def test_each_kind_is_found_and_nothing_else(kind: str) -> None:
    for value in {**PERSONAL, **SECRETS}[kind]:
        for text in (value, f"Use {value}, please.", f"({value})\n", f'{{"a": "{value}"}}'):
            assert [text[start:end] for start, end, _ in covered(text)] == [value]
            assert kinds(text) == {kind}


@pytest.mark.parametrize("kind", WITHIN)
def test_by_what_stands_beside(kind: str) -> None:
    form, value = WITHIN[kind]
    text = form.format(value)
    assert [(text[start:end], found) for start, end, found in covered(text)] == [(value, kind)]
    assert covered(value) == []


def test_every_kind_has_a_name_and_a_case() -> None:
    tried = {*PERSONAL, *SECRETS, *WITHIN}
    assert tried == pii.KINDS.keys() | secret_patterns.KINDS.keys()


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_so_is_none(text: str) -> None:
    assert [text[start:end] for start, end, _ in covered(text)] == []


def test_masked() -> None:
    assert masked("jane@acme.com", "email") == "j***@a***.com"
    assert masked("AKIA" + "Q" * 16, "aws-key") == "AKIA…(20 characters)"
    assert masked("4539148803436467", "card") == "…(16 characters)"


PLANTED = st.sampled_from([value for values in {**PERSONAL, **SECRETS}.values() for value in values])
TEXT = st.text(max_size=400)


@settings(max_examples=150, deadline=None)
@given(TEXT, PLANTED, TEXT, st.integers(0, 1000))
def test_nothing_planted_is_shown(before: str, value: str, after: str, place: int) -> None:
    text = f"{before} {value} {after}"
    for shown in (excerpt(text, min(place, len(text))), excerpt(text, len(before) + 1), written(text, covered(text))):
        assert value not in shown
    assert len(excerpt(text, place)) <= EXCERPT


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(TEXT, PLANTED, TEXT), min_size=1, max_size=4))
def test_no_finding_shows_what_was_planted(planted: list[tuple[str, str, str]]) -> None:
    """Whatever check tells a row: here they are duplicates, open alike, and end alike."""
    suite, rows = Suite(ChecksSpec(), form="prompt-completion"), 0
    for _ in range(60 // len(planted)):
        for before, value, after in planted:
            rows += 1
            suite.see("train", 0, rows, Example(prompt=f"{value} {before}", completion=f"{before}\n{value} is it, really.\n{after} {value}"))  # fmt: skip
    findings = suite.findings(["train.jsonl"])
    assert {"ExactDuplicates"} <= {finding.code for finding in findings}
    told = json.dumps([finding.model_dump() for finding in findings], ensure_ascii=False)
    assert not [value for _, value, _ in planted if json.dumps(value, ensure_ascii=False)[1:-1] in told]


ANY = st.text(st.characters(codec=None, exclude_categories=()), max_size=300)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(
    st.builds(Example, prompt=st.none() | ANY, completion=ANY),
    st.builds(Example, text=ANY, pair=st.none() | ANY, label=st.booleans() | st.integers() | ANY | st.tuples(ANY, ANY)),
    st.builds(Example, messages=st.lists(st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": st.none() | ANY}), min_size=1).map(tuple)),
), min_size=1, max_size=20), st.sampled_from(["messages", "prompt-completion", "classification"]))  # fmt: skip
def test_no_text_breaks_a_check(examples: list[Example], form: str) -> None:
    suite = Suite(ChecksSpec(), form=form)
    for number, example in enumerate(examples * 4):
        suite.see(("train", "validation", "test")[number % 3], 0, number, example)
    for finding in suite.findings(["rows.jsonl"]):
        finding.model_dump_json()


SLOW = {
    # name: what makes a careless pattern try everything
    "letters": "a" * 200_000,
    "dots": "a." * 100_000,
    "ats": "a@" * 100_000,
    "digits": "1" * 200_000,
    "spaced digits": "1 " * 100_000,
    "pluses": "+1" * 100_000,
    "capitals": "AB12 " * 40_000,
    "assignments": "key=" * 50_000,
    "tokens": "sk-" * 70_000,
    "names": ("secret=" + "a_" * 60 + "1a1a1a! ") * 1_000,
    "urls": "a://b:" * 30_000,
    "calls": "call " * 40_000,
    "jwt": "eyJ" * 70_000,
    "keys": "-----BEGIN PRIVATE KEY-----" * 4_000,
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", SLOW)
def test_a_long_text_ends(name: str) -> None:
    """In milliseconds; a pattern that backtracks takes minutes to hours."""
    assert len(covered(SLOW[name])) <= len(SLOW[name])


def test_a_row_is_one_line_of_an_excerpt() -> None:
    assert excerpt(f"{prose(100, 1)}\n\nline two", 5).count("\n") == 0
    assert excerpt("x" * (2 << 20)) == "(a row of 2,097,152 characters)"
