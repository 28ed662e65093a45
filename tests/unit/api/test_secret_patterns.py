"""Secrets that a pod writes into its log or its termination message are removed; sentences stay readable."""

from __future__ import annotations

import base64
import random
import string
import time

import pytest
from finetune_api.secret_patterns import REMOVED, redact

_RANDOM = random.Random(11)


def drawn(length: int, letters: str = string.ascii_letters + string.digits) -> str:
    """Made here, so that no scanner takes this file for a leak."""
    return "".join(_RANDOM.choice(letters) for _ in range(length))


AWS, GITHUB, GITLAB, HUB = (
    drawn(40),
    "github_pat_" + drawn(22) + "_" + drawn(40),
    "glpat-" + drawn(20),
    "hf_" + drawn(34),
)
BASIC = base64.b64encode(b"robot:" + drawn(9).encode()).decode()
JWT = f"eyJ{drawn(20)}.eyJ{drawn(40)}.{drawn(43)}"

LOGGED = [
    # (what a log line holds, what must not be left of it)
    (f"AWS_SECRET_ACCESS_KEY={AWS}", AWS),
    (f"aws_secret_access_key = '{AWS}'", AWS),
    ("cannot connect to postgres://admin:pw1@db:5432/shop", "pw1"),
    ("git clone https://x7y8z9@git.example.org/repo failed", "x7y8z9"),
    ('{"user": "a", "token": "short", "n": 1}', "short"),
    (f"push refused for {GITHUB}", GITHUB),
    (f"push refused for {GITHUB[:30]}", GITHUB[:30]),
    (f"remote: {GITLAB} expired", GITLAB),
    (f"401 for {HUB}", HUB),
    (f"401 for {HUB[:14]}", HUB[:14]),
    (f"> Authorization: Basic {BASIC}", BASIC),
    (f"sent Basic {BASIC} to the proxy", BASIC),
    ("'authorization': 'Bearer abc.def'", "abc.def"),
    ("header Bearer opaque-value-1 refused", "opaque-value-1"),
    (f"jwt {JWT} expired", JWT),
    (f"jwt {JWT[:60]}", JWT[:60]),
    ("login failed: password=hunter2 host=db", "hunter2"),
    ("password: correct horse", "correct"),
    ('client_secret: "with, comma"', "with, comma"),
    ("DB_PASSWORD=x", "=x"),
    ("api_key=aaaa, next", "aaaa"),
    ("X-Api-Key: aaaa", "aaaa"),
    (f"GET https://b.s3.example.org/k?X-Amz-Signature={'ab12' * 8}&x=1", "ab12"),
    (f"-----BEGIN PRIVATE KEY-----\n{drawn(64)}\n{(tail := drawn(64))}\n-----END PRIVATE KEY-----", tail),
]


@pytest.mark.parametrize(("text", "secret"), LOGGED, ids=range(len(LOGGED)))
def test_a_secret_in_a_log_line_is_removed(text: str, secret: str) -> None:
    shown = redact(text)
    assert secret not in shown
    assert REMOVED in shown
    assert redact(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "data.train[0]: line 7 has no answer; 512 tokens, pad_token: <pad>, eos_token='</s>', max_new_tokens=64",
        "hf_transfer is not installed; using hf_hub_download of hf://org/model@main from https://hub.example.org/x",
        "put HF_TOKEN into a Secret of the job's namespace and name it in secretRef",
        'secret "hub" not found',
        "Secret hub has no key HF_TOKEN",
        "spec.model.uri: pvc://models/base; sk-learn 1.5; the basic settings; the bearer of bad news",
        "RuntimeError: CUDA error: an illegal memory access was encountered (node gpu-7, rank 3, step 120)",
        'failed to pull image "registry.example.org/a/b@sha256:' + "ab12" * 16 + '": not found',
    ],
)
def test_a_sentence_without_secrets_stays(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    "part", ["token=", "bearer ", "://a", "eyJ", "password: '", "sk-a", "a-", "Authorization: Basic "]
)
def test_redaction_takes_linear_time(part: str) -> None:
    """CPU time of four times the text: 4 where it is linear, 16 where it is quadratic."""

    def seconds(length: int) -> float:
        text, took = part * (length // len(part)), []
        for _ in range(3):
            began = time.process_time()
            redact(text)
            took.append(time.process_time() - began)
        return min(took)

    assert seconds(200_000) < 9 * seconds(50_000)
