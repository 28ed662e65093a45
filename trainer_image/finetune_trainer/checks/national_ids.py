"""Numbers that states give to people, told from other numbers by their check digits (python-stdnum).

A number whose check digit is right by chance in more than one of about a hundred cases counts only where a word beside
it says what it is.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from finetune_api.spans import Span

_BESIDE = 40
"""Characters before a number in which its name is looked for."""


@dataclass(frozen=True, slots=True)
class _Id:
    """`module` is stdnum's. `named` in lower case: the number counts only behind one of these words."""

    module: str
    pattern: re.Pattern[str]
    named: tuple[str, ...] = ()


def _id(module: str, pattern: str, *named: str) -> _Id:
    return _Id(module, re.compile(rf"(?<![\w.,-]){pattern}(?![\w-]|[.,][0-9])", re.ASCII), named)


_LETTERED = (
    _id("it.codicefiscale", r"[A-Z]{6}[0-9]{2}[A-Z][0-9]{2}[A-Z][0-9]{3}[A-Z]"),
    _id("mx.curp", r"[A-Z]{4}[0-9]{6}[HM][A-Z]{5}[0-9A-Z][0-9]"),
    _id("es.dni", r"[0-9]{8}-?[A-HJ-NP-TV-Z]"),
    _id("es.nie", r"[XYZ]-?[0-9]{7}-?[A-HJ-NP-TV-Z]"),
    _id("fi.hetu", r"[0-9]{6}[-+A][0-9]{3}[0-9A-Y]"),
    _id("in_.pan", r"[A-Z]{5}[0-9]{4}[A-Z]", "pan"),
)
"""With letters between the digits."""

_DIGITS = (
    _id("us.ssn", r"[0-9]{3}-[0-9]{2}-[0-9]{4}"),
    _id("br.cpf", r"[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}"),
    _id("ch.ssn", r"756\.[0-9]{4}\.[0-9]{4}\.[0-9]{2}"),
    _id("cn.ric", r"[1-9][0-9]{5}(?:19|20)[0-9]{9}[0-9X]"),
    _id("fr.nir", r"[12] ?[0-9]{2} ?(?:0[1-9]|1[0-2]) ?[0-9]{2} ?[0-9]{3} ?[0-9]{3} ?[0-9]{2}"),
    _id("kr.rrn", r"[0-9]{6}-[1-8][0-9]{6}"),
    _id("se.personnummer", r"(?:19|20)?[0-9]{6}[-+][0-9]{4}"),
    _id("za.idnr", r"[0-9]{13}", "id number", "identity"),
    _id("de.idnr", r"[0-9]{2} ?[0-9]{3} ?[0-9]{3} ?[0-9]{3}", "steuer", "idnr"),
    _id("nl.bsn", r"[0-9]{9}", "bsn", "burgerservice", "sofinummer"),
    _id("pl.pesel", r"[0-9]{11}", "pesel"),
    _id("in_.aadhaar", r"[0-9]{4} ?[0-9]{4} ?[0-9]{4}", "aadhaar", "aadhar"),
    _id("gb.nhs", r"[0-9]{3}[ -]?[0-9]{3}[ -]?[0-9]{4}", "nhs"),
    _id("ca.sin", r"[0-9]{3}[ -]?[0-9]{3}[ -]?[0-9]{3}", "sin:", "sin ", "social insurance"),
    _id("au.tfn", r"[0-9]{3} ?[0-9]{3} ?[0-9]{3}", "tfn", "tax file"),
    _id("be.nn", r"[0-9]{2}\.[0-9]{2}\.[0-9]{2}-[0-9]{3}\.[0-9]{2}"),
)

_LETTERS_AND_DIGITS = re.compile(r"[A-Z0-9]{6}", re.ASCII)
"""Met in every text with an id that has letters."""

_EXAMPLES = frozenset(
    {"123456789", "12345678Z", "00000000T", "X1234567L", "RSSMRA85T10A562S", "078051120", "219099999", "ABCDE1234F"}
)
"""From documentation and textbooks, without their separators."""


def find(text: str, *, many_digits: bool) -> Iterator[Span]:
    """Spans of kind national-id. `many_digits`: whether the text holds seven digits in a run, separators apart."""
    if _LETTERS_AND_DIGITS.search(text):
        yield from _found(text, _LETTERED)
    if many_digits:
        yield from _found(text, _DIGITS)


def _found(text: str, ids: tuple[_Id, ...]) -> Iterator[Span]:
    lower = text.lower()
    for one in ids:
        if one.named and not any(word in lower for word in one.named):
            continue
        for match in one.pattern.finditer(text):
            if one.named:
                before = text[max(0, match.start() - _BESIDE) : match.start()].lower()
                if not any(word in before for word in one.named):
                    continue
            number = re.sub(r"[ .+-]", "", match.group())
            if number not in _EXAMPLES and _validator(one.module).is_valid(match.group()):
                yield Span(match.start(), match.end(), "national-id")


@cache
def _validator(module: str) -> Any:
    return importlib.import_module(f"stdnum.{module}")
