"""Personal data in a text: e-mail addresses, phone, card and account numbers, and numbers that states give to people.

Each is proved where it can be: phone numbers by the numbering plans (phonenumbers), cards by network and Luhn's check
digit, accounts (IBAN) and national ids by their check digits (python-stdnum). Names of people are not looked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from finetune_api.spans import Span, disjoint

from finetune_trainer.checks import national_ids

KINDS = {
    "email": "e-mail addresses",
    "phone": "phone numbers",
    "card": "card numbers",
    "iban": "account numbers",
    "national-id": "national ids",
}

_MANY_DIGITS = re.compile(r"[0-9](?:[ .()/-]{0,2}[0-9]){6}")


def spans(text: str) -> list[Span]:
    """What was found, disjoint and in order; `kind` is one of KINDS. Linear in the text's length."""
    found: list[Span] = []
    if "@" in text:
        found += _addresses(text)
    many_digits = _MANY_DIGITS.search(text) is not None
    found += national_ids.find(text, many_digits=many_digits)
    if many_digits:
        found += _ibans(text)
        found += _cards(text)
        found += _phones(text)
    return disjoint(found) if len(found) > 1 else found


# ---- e-mail

_ADDRESS = re.compile(r"(?<![\w.%+'-])[\w.%+'-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w-])")
_NOBODY = ("noreply", "no-reply", "donotreply", "do-not-reply", "git", "user", "username", "you", "your", "name")
_NOWHERE = re.compile(
    r"(?:^|[.@])(?:example\.\w+|example|test|invalid|localhost|local|(?:your)?(?:domain|company|email|mail|site)\.com"
    r"|png|jpe?g|gif|svg|webp|ico|pdf|css|js|ts|py|md|json|html?|service|timer|socket)$"
)
"""Domains kept free for examples (RFC 2606) and those of textbooks; endings of files and units: logo@2x.png."""


def _addresses(text: str) -> Iterator[Span]:
    for match in _ADDRESS.finditer(text):
        local, _, domain = match.group().lower().rpartition("@")
        if local not in _NOBODY and not _NOWHERE.search(domain) and not _in_url(text, match.start()):
            yield Span(match.start(), match.end(), "email")


def _in_url(text: str, at: int) -> bool:
    """Whether what stands before the @ is a URL's user and password: secrets.py finds those."""
    before = text[max(0, at - 100) : at]
    return "://" in before and not any(map(str.isspace, before.rpartition("://")[2]))


# ---- phones

_INTERNATIONAL = re.compile(r"(?<![\w+.,=*/-])(?:\+|00)[(]?[1-9](?:[ .()/-]{0,2}[0-9]){7,14}(?![0-9])")
_AMERICAN = re.compile(
    r"(?<![\w+.,=*/-])(?:1[ .-])?(?:\([2-9][0-9]{2}\) ?[2-9][0-9]{2}[ .-]|[2-9][0-9]{2}([ .-])[2-9][0-9]{2}\1)[0-9]{4}(?![\w-]|[.,][0-9])"
)
_NAMED = re.compile(
    r"\b(?:tele?(?:phone|fon|fono|f)?|phone|mobile?|mobil|handy|cell|call|fax|whatsapp|ring|sms|text)\b[^0-9\n]{0,20}?"
    r"([(]?0[0-9()](?:[ .()/-]{0,2}[0-9]){6,12})(?![0-9])",
    re.IGNORECASE,
)
"""As people write it at home, behind a word that says what it is."""
_HOMES = ("GB", "DE", "FR", "ES", "IT", "NL", "BE", "CH", "AT", "PL", "SE", "AU", "ZA", "IN", "JP", "BR")
_FICTION = re.compile(
    r"555[ .-]?01[0-9]{2}$|555[ .-]?1212$|555[ .-]?5555$|7946[ ]?0[0-9]{3}$|1234[ -]?567|123[ .-]?4567"
)
"""Numbers kept free for films and books, and those of textbooks."""
_SHORTEST_PHONE = 7


def _phones(text: str) -> Iterator[Span]:
    for match in _INTERNATIONAL.finditer(text):
        number = match.group()
        length = _length_in_plan(number if number[0] == "+" else "+" + number[2:], (None,))
        if length:
            yield Span(match.start(), match.start() + length + (number[0] != "+"), "phone")
    for match in _AMERICAN.finditer(text):
        if _in_plan(match.group(), "US"):
            yield Span(match.start(), match.end(), "phone")
    for match in _NAMED.finditer(text):
        if length := _length_in_plan(match.group(1), _HOMES):
            yield Span(match.start(1), match.start(1) + length, "phone")


def _length_in_plan(number: str, regions: Sequence[str | None]) -> int:
    """Of the longest beginning that is a number somewhere, 0 for none: another number may follow it."""
    while len(number) >= _SHORTEST_PHONE:
        if any(_in_plan(number, region) for region in regions):
            return len(number)
        number = number[: max(0, *map(number.rfind, " ./-("))].rstrip(" .()/-")
    return 0


def _in_plan(number: str, region: str | None) -> bool:
    if _FICTION.search(number):
        return False
    phonenumbers = _phonenumbers()
    try:
        return bool(phonenumbers.is_valid_number(phonenumbers.parse(number, region)))
    except phonenumbers.NumberParseException:
        return False


@cache
def _phonenumbers() -> Any:
    """Loaded with the first candidate: most data has none."""
    import phonenumbers

    return phonenumbers


# ---- cards

_CARD = re.compile(
    r"(?<![\w.,+-])(?:(?:4[0-9]{3}|5[1-5][0-9]{2}|2[2-7][0-9]{2}|6(?:011|2[0-9]{2}|4[4-9][0-9]|5[0-9]{2})|35[2-8][0-9])([ -]?)[0-9]{4}\1[0-9]{4}\1[0-9]{4}"
    r"|3[47][0-9]{2}([ -]?)[0-9]{6}\2[0-9]{5}|3(?:0[0-5]|[68][0-9])[0-9]([ -]?)[0-9]{6}\3[0-9]{4})(?![\w-]|[.,][0-9])"
)
"""Visa, Mastercard, Discover, UnionPay, JCB (16 digits), American Express (15), Diners Club (14), by ISO 7812 prefixes."""
_TEST_CARDS = frozenset(
    [
        "4111111111111111",
        "4242424242424242",
        "4012888888881881",
        "4000056655665556",
        "5555555555554444",
        "5105105105105100",
        "2223003122003222",
        "378282246310005",
        "371449635398431",
        "6011111111111117",
        "6011000990139424",
        "3530111333300000",
        "3566002020360505",
        "30569309025904",
        "38520000023237",
        "36227206271667",
        "4539578763621486",
        "4716059683746452",
    ]
)
"""From the documentation of payment services and from textbooks."""


def _cards(text: str) -> Iterator[Span]:
    for match in _CARD.finditer(text):
        digits = re.sub(r"[ -]", "", match.group())
        if len(set(digits)) > 3 and digits not in _TEST_CARDS and _luhn(digits):
            yield Span(match.start(), match.end(), "card")


def _luhn(digits: str) -> bool:
    from stdnum import luhn

    return luhn.is_valid(digits)


# ---- accounts

_IBAN = re.compile(r"(?<![\w.-])[A-Z]{2}[0-9]{2}(?: ?[0-9A-Z]{4}){2,7}(?: ?[0-9A-Z]{1,3})?(?!\w)", re.ASCII)
_SHORTEST_IBAN = 15
_EXAMPLE_IBANS = frozenset(
    [
        "DE89370400440532013000",
        "GB29NWBK60161331926819",
        "GB82WEST12345698765432",
        "FR1420041010050500013M02606",
        "NL91ABNA0417164300",
        "CH9300762011623852957",
        "ES9121000418450200051332",
        "IT60X0542811101000000123456",
        "BE68539007547034",
        "AT611904300234573201",
    ]
)


def _ibans(text: str) -> Iterator[Span]:
    """The longest beginning of each candidate that is one: words in capitals may follow it."""
    for match in _IBAN.finditer(text):
        if (length := _iban_length(match.group())) is not None:
            yield Span(match.start(), match.start() + length, "iban")


def _iban_length(candidate: str) -> int | None:
    from stdnum import iban

    for length in range(len(candidate), _SHORTEST_IBAN - 1, -1):
        if candidate[length - 1] != " " and iban.is_valid(candidate[:length]):
            return None if candidate[:length].replace(" ", "") in _EXAMPLE_IBANS else length
    return None
