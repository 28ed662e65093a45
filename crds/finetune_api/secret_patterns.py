"""Keys, tokens and passwords in a text, by the forms that their makers gave them.

What the makers' documentation shows as an example is none, nor is a placeholder (`YOUR_API_KEY`, `xxxx`). Passwords
without a form of their own count only in a URL, or where they are assigned to such a name and look random.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from finetune_api.spans import Span, disjoint

KINDS = {
    "aws-key": "AWS keys",
    "github-token": "GitHub tokens",
    "gitlab-token": "GitLab tokens",
    "slack-token": "Slack tokens",
    "google-key": "Google keys",
    "openai-key": "OpenAI keys",
    "anthropic-key": "Anthropic keys",
    "huggingface-token": "Hugging Face tokens",
    "stripe-key": "Stripe keys",
    "npm-token": "npm tokens",
    "pypi-token": "PyPI tokens",
    "service-token": "tokens of other services",
    "private-key": "private keys",
    "jwt": "JSON Web Tokens",
    "url-password": "passwords in URLs",
    "credential": "passwords or keys by their names",
}


@dataclass(frozen=True, slots=True)
class _Form:
    """`literals`: a text without any of them holds none. The secret is group 1 of `pattern` where it has one.

    `random`: bits a character that its own part must have at least; 0: its form is proof enough.
    """

    kind: str
    literals: tuple[str, ...]
    pattern: re.Pattern[str]
    random: float = 0.0


def _form(kind: str, literals: str, pattern: str, random: float = 0.0) -> _Form:
    return _Form(kind, tuple(literals.split()), re.compile(pattern, re.ASCII), random)


_B = r"(?<![\w-])"  # not within a longer word
_E = r"(?![\w-])"

_FORMS = (
    _form("aws-key", "AKIA ASIA ABIA ACCA", rf"{_B}(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{{16}}{_E}", 2.5),
    _form(
        "aws-key",
        "aws AWS",
        r"(?i:aws)\w{0,20}(?i:secret|key)[\w\"' ]{0,20}[:=]\s{0,3}[\"']?([A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])",
        3.5,
    ),
    _form("github-token", "ghp_ gho_ ghu_ ghs_ ghr_", rf"{_B}gh[pousr]_[A-Za-z0-9]{{36,251}}{_E}", 2.5),
    _form("github-token", "github_pat_", rf"{_B}github_pat_[A-Za-z0-9_]{{36,251}}{_E}", 2.5),
    _form("gitlab-token", "glpat- gldt- glrt- glcbt- glptt- glsoat-", rf"{_B}gl(?:pat|dt|rt|cbt|ptt|soat)-[\w.-]{{20,300}}", 2.5),
    _form("slack-token", "xoxb- xoxp- xoxa- xoxr- xoxs- xoxe- xoxo- xapp-", rf"{_B}(?:xox[abeoprs]|xapp)-[0-9A-Za-z-]{{16,255}}{_E}", 2.5),
    _form("slack-token", "hooks.slack.com/", r"hooks\.slack\.com/(?:services|workflows)/(T[A-Z0-9]{6,20}/[A-Z0-9]{6,20}/[A-Za-z0-9]{18,64})", 2.5),
    _form("google-key", "AIza", rf"{_B}AIza[\w-]{{35}}{_E}", 2.5),
    _form("google-key", "GOCSPX-", rf"{_B}GOCSPX-[\w-]{{28}}{_E}", 2.5),
    _form("google-key", "ya29.", rf"{_B}ya29\.[\w-]{{30,500}}{_E}", 2.5),
    _form("anthropic-key", "sk-ant-", rf"{_B}sk-ant-[\w-]{{24,200}}{_E}", 3.0),
    _form("openai-key", "sk-", rf"{_B}sk-(?!ant-)(?:proj-|svcacct-|admin-)?(?=[A-Za-z_-]{{0,60}}[0-9])[\w-]{{32,200}}{_E}", 3.5),
    _form("huggingface-token", "hf_", rf"{_B}hf_[A-Za-z0-9]{{34,60}}{_E}", 2.5),
    _form("stripe-key", "_live_ _test_", rf"{_B}[srp]k_(?:live|test)_[A-Za-z0-9]{{20,250}}{_E}", 2.5),
    _form("stripe-key", "whsec_", rf"{_B}whsec_[A-Za-z0-9+/=]{{24,100}}", 2.5),
    _form("npm-token", "npm_", rf"{_B}npm_[A-Za-z0-9]{{36}}{_E}", 2.5),
    _form("pypi-token", "pypi-AgE", rf"{_B}pypi-AgE[\w-]{{40,300}}{_E}", 2.5),
    _form("service-token", "SG.", rf"{_B}SG\.[\w-]{{16,32}}\.[\w-]{{32,64}}{_E}", 3.0),
    _form("service-token", "dop_v1_ doo_v1_ dor_v1_", rf"{_B}do[opr]_v1_[a-f0-9]{{64}}{_E}", 2.5),
    _form("service-token", "shpat_ shpca_ shppa_ shpss_", rf"{_B}shp(?:at|ca|pa|ss)_[a-fA-F0-9]{{32}}{_E}", 2.5),
    _form("service-token", "dapi", rf"{_B}dapi[a-f0-9]{{32}}(?:-\d)?{_E}", 2.5),
    _form("service-token", "hvs. hvb.", rf"{_B}hv[sb]\.[\w-]{{24,300}}{_E}", 2.5),
    _form("service-token", "dckr_pat_", rf"{_B}dckr_pat_[\w-]{{24,64}}{_E}", 2.5),
    _form("service-token", "SK", rf"{_B}SK[0-9a-f]{{32}}{_E}", 2.5),
    _form("service-token", ":AA", rf"{_B}[0-9]{{8,10}}:AA[\w-]{{33}}{_E}", 2.5),
    _form("service-token", "AccountKey= SharedAccessKey=", r"(?:AccountKey|SharedAccessKey)=([A-Za-z0-9+/]{42,86}={1,2})", 3.0),
    _form("service-token", "AGE-SECRET-KEY-1", rf"{_B}AGE-SECRET-KEY-1[0-9A-Z]{{58}}{_E}", 2.5),
    _form("jwt", "eyJ", rf"{_B}eyJ[\w-]{{10,4000}}\.eyJ[\w-]{{10,8000}}\.[\w-]{{20,1000}}", 2.5),
    _form("url-password", "://", r"[A-Za-z][A-Za-z0-9+.-]{1,20}://[^\s/:@\"'<>\[\]]{0,64}:([^\s/@\"'<>{}\[\]$]{4,128})@(?:[\w-]{1,63}(?:\.[\w-]{1,63})+|[\w-]{1,63}:[0-9]{2,5})"),
)  # fmt: skip

_NAMES = ("key", "secret", "token", "passw", "pwd", "credential")
_ASSIGNED = re.compile(
    r"(?:(?i:api_?key|access_?key|secret_?key|client_?secret|private_?key|auth_?token|access_?token|passwd|password|passwort|pwd|credential)"
    r"|(?<![A-Za-z:])(?<!next_)(?<!page_)(?i:secret|token))s?"
    r"[\"'`]?\s{0,3}(?::=|[:=]>?)\s{0,3}(?:[\"'`]|(?i:bearer )){0,2}([\w+/=.~!@#$%^&*-]{12,128})(?![\w(\[])",
    re.ASCII,
)
"""A name, what assigns, and a value. NextToken and the like turn pages."""

_PLACEHOLDER = re.compile(
    r"example|sample|dummy|placeholder|change.?me|redacted|your|insert|replace|secret.?here|my.?pass|my.?secret|my.?token|test.?test|fake|foo.?bar|x{4}|\*{3}|\.{3}|0{6}|1234567|abcdefg|deadbeef|^pass(?:word|wd)?$|^secret$|^pw$",
    re.IGNORECASE,
)
_EXAMPLES = (
    "4eC39HqLyjWDarjtT1zdp7dc",
    "BQokikJOvBiI2HlWgH4olfQ2",
    "TYooMQauvdEDq54NiTphI7jx",
    "SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c",
    "wJalrXUtnFEMI",
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq",
)
"""Shown in their makers' documentation: Stripe, jwt.io, AWS, Azure's storage emulator."""

_KEY_BEGINS = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----", re.ASCII)
_KEY_BODY = re.compile(r"(?:[A-Za-z0-9+/=\s:,.-]|\\[nr])*", re.ASCII)
_KEY_ENDS = re.compile(r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----", re.ASCII)
_SHORTEST_KEY = 48


def spans(text: str) -> list[Span]:
    """What was found, disjoint and in order; `kind` is one of KINDS. Linear in the text's length."""
    found: list[Span] = []
    for form in _FORMS:
        for literal in form.literals:
            if literal in text:
                found += _of(form, text)
                break
    if "PRIVATE KEY" in text:
        found += _private_keys(text)
    if "=" in text or ":" in text:
        lower = text.lower()
        if any(name in lower for name in _NAMES):
            found += _assigned(text)
    return disjoint(found) if len(found) > 1 else found


def _of(form: _Form, text: str) -> Iterator[Span]:
    group = 1 if form.pattern.groups else 0
    for match in form.pattern.finditer(text):
        value = match.group(group)
        if _is_real(value) and (not form.random or entropy(value) >= form.random):
            yield Span(*match.span(group), form.kind)


def _assigned(text: str) -> Iterator[Span]:
    """Random at sight: letters and digits in turns, and hardly a character twice."""
    for match in _ASSIGNED.finditer(text):
        value = match.group(1).rstrip(".!")
        if match.group(1).endswith("..."):
            continue
        random = entropy(value) >= 3.3 and len(_TURNS.findall(value)) >= 3
        if random and _is_real(value) and not _CODE.search(value):
            yield Span(match.start(1), match.start(1) + len(value), "credential")


_TURNS = re.compile(r"(?<=[A-Za-z])[0-9]|(?<=[0-9])[A-Za-z]")
_CODE = re.compile(
    r"^[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+$|^https?:|^\$|^%|^[\w.-]+@[\w.-]+$|^[0-9./:-]+$",
    re.ASCII,
)
"""Names, variables and versions: ed25519.Ed25519PrivateKey, $TOKEN."""


def _private_keys(text: str) -> Iterator[Span]:
    """The block to its end, or as far as it looks like one; a heading without a body is none."""
    stop, end = 0, _KEY_ENDS.search(text)
    while begin := _KEY_BEGINS.search(text, stop):
        if end and end.start() < begin.end():
            end = _KEY_ENDS.search(text, begin.end())
        body = _KEY_BODY.match(text, begin.end(), end.start() if end else len(text))
        assert body is not None
        whole = end is not None and body.end() == end.start()
        stop = end.end() if end and whole else body.end()
        inner = body.group().strip()
        if len(inner) >= _SHORTEST_KEY and not _PLACEHOLDER.search(inner[:_SHORTEST_KEY]):
            yield Span(begin.start(), stop, "private-key")


def _is_real(value: str) -> bool:
    return not _PLACEHOLDER.search(value) and not any(example in value for example in _EXAMPLES)


def entropy(value: str) -> float:
    """Shannon's, of its characters, in bits a character: 0 for one letter repeated, log2(n) for n different ones."""
    counts, total = Counter(value).values(), len(value)
    return -sum(count / total * math.log2(count / total) for count in counts) if total else 0.0


REMOVED = "[removed]"

_LOGGED = (
    # A value after a name, whatever it looks like; names that tokenizers use (pad_token: <pad>) hold no secret.
    re.compile(
        r"(?<!\bpad_)(?<!\bbos_)(?<!\beos_)(?<!\bunk_)(?<!\bcls_)(?<!\bsep_)(?<!\bmask_)(?<!\bimage_)"
        r"(?:token|password|passwort|passwd|passphrase|pwd|secret|credentials?|api[_-]?key|access[_-]?key|secret[_-]?key"
        r"|account[_-]?key|private[_-]?key|session[_-]?key)"
        r"(?![A-Za-z0-9_])[\"'`]?\s{0,3}(?::=|=>|[:=])\s{0,3}"
        r"(?P<secret>\"[^\"]*\"?|'[^']*'?|(?:(?:Basic|Bearer)\s{1,3})?[^\s,;&\"']+)",
        re.IGNORECASE | re.ASCII,
    ),
    re.compile(
        r"authorization[\"']?\s{0,3}[:=]\s{0,3}[\"']?(?P<secret>(?:(?:Basic|Bearer|Digest|Negotiate|Token)\s{1,3})?[^\s,;\"']+)",
        re.IGNORECASE | re.ASCII,
    ),
    re.compile(r"\bbearer\s{1,3}(?P<secret>[\w.~+/=-]{8,})", re.IGNORECASE | re.ASCII),
    re.compile(r"\bBasic\s{1,3}(?P<secret>(?=[A-Za-z0-9+/]*[0-9=A-Z])[A-Za-z0-9+/]{8,}={0,2})", re.ASCII),
    re.compile(r"://(?P<secret>[^\s/@\"'<>]+)@", re.ASCII),
    re.compile(r"[?&](?:X-Amz-\w{1,20}|X-Goog-\w{1,20}|sig|signature|AWSAccessKeyId)=(?P<secret>[^&\s\"']+)", re.IGNORECASE | re.ASCII),
    # Cut off, or of another length than its maker's.
    re.compile(
        r"(?<![\w-])(?P<secret>(?:gh[pousr]_|github_pat_|glpat-|xox[abeoprs]-|sk-ant-|AKIA|ASIA|AIza)[\w-]{6,}"
        r"|hf_(?=[a-z]*[A-Z0-9])[A-Za-z0-9]{6,}|sk-(?=[A-Za-z_-]{0,60}[0-9])[\w-]{12,}|eyJ[\w-]{10,}(?:\.[\w-]*)*)",
        re.ASCII,
    ),
)  # fmt: skip


def redact(text: str) -> str:
    """Remove every secret from a text that is shown outside of the pod that wrote it.

    Stricter than `spans`, which reads training data: in a log, a value behind a name such as `password`, an Authorization
    header and the user part of a URL are removed whatever they look like.
    """
    found = spans(text)
    for pattern in _LOGGED:
        found += [Span(*match.span("secret"), "credential") for match in pattern.finditer(text)]
    parts, end = [], 0
    for span in disjoint(found):
        value = text[span.start : span.end]
        quote = value[0] if value[0] in "\"'" and value[-1] == value[0] and len(value) > 1 else ""
        parts += [text[end : span.start], quote, REMOVED, quote]
        end = span.end
    return "".join([*parts, text[end:]])
