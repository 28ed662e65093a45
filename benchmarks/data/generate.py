"""A file of many rows with known faults: sentences of real questions and answers in new orders, with new numbers."""

from __future__ import annotations

import json
import random
import re
import string
from collections import Counter
from collections.abc import Callable
from pathlib import Path

_NUMBER = re.compile(r"\d+")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n")
_RECENT = 5_000

Row = dict[str, str]


def _digits(count: int, chosen: random.Random) -> str:
    return "".join(chosen.choice(string.digits) for _ in range(count))


def _token(count: int, chosen: random.Random) -> str:
    return "".join(chosen.choice(string.ascii_letters + string.digits) for _ in range(count))


def _card(chosen: random.Random) -> str:
    body = "4" + _digits(14, chosen)
    doubled = sum(sum(divmod(2 * int(digit), 10)) for digit in body[::2])
    check = -(doubled + sum(map(int, body[1::2]))) % 10
    return f"{body}{check}"


def _said(words: Callable[[random.Random], str]) -> Callable[[Row, random.Random], Row]:
    """The row with something more in its answer."""
    return lambda row, chosen: {**row, "answer": f"{row['answer']} {words(chosen)}"}


def _one_word_less(row: Row, chosen: random.Random) -> Row:
    words = row["question"].split(" ")
    words[chosen.randrange(len(words))] = "surely"
    return {**row, "question": " ".join(words)}


_FOREIGN = tuple(
    text.split()
    for text in (
        "der alte Kapitän geht jeden Morgen langsam über die Brücke zum Markt und kauft dort frische Äpfel für seine Familie wenn es nicht regnet weil er gern früh aufsteht",
        "le vieux capitaine traverse lentement le pont chaque matin et achète des pommes fraîches au marché pour sa famille quand il ne pleut pas parce que les enfants aiment bien",
    )
)


def _foreign(_: Row, chosen: random.Random) -> Row:
    words = chosen.choice(_FOREIGN)
    return {"question": " ".join(chosen.choices(words, k=20)), "answer": " ".join(chosen.choices(words, k=30))}


PLANTED: dict[str, tuple[float, bool, Callable[[Row, random.Random], Row]]] = {
    # check: (share of rows, whether the row is an earlier one changed, the change)
    "ExactDuplicates": (0.01, True, lambda row, _: row),
    "NearDuplicates": (0.01, True, _one_word_less),
    "ConflictingAnswers": (0.005, True, lambda row, chosen: {**row, "answer": f"It is {_digits(4, chosen)}, I am certain of that."}),
    "Pii": (0.004, False, _said(lambda chosen: chosen.choice((
        f"Write to {_token(6, chosen).lower()}@{_token(7, chosen).lower()}.org about it.",
        f"The card is {_card(chosen)}.",
        f"Call +49 30 {chosen.randrange(200000, 899999)} today.",
        f"The number is {chosen.randrange(101, 665)}-{chosen.randrange(10, 99)}-{chosen.randrange(1000, 9999)}.",
    )))),
    "Secrets": (0.001, False, _said(lambda chosen: chosen.choice((
        f"export TOKEN=ghp_{_token(36, chosen)}", f"the key sk-proj-{_token(48, chosen)} works", f"hf_{_token(34, chosen)} is mine"
    )))),
    "Refusals": (0.002, False, lambda row, _: {**row, "answer": "I'm sorry, but I can't help with that. " + row["answer"][:40]}),
    "Repetition": (0.0005, False, _said(lambda chosen: f"and then {_token(5, chosen)} goes on " * 60)),
    "ToxicTerms": (0.001, False, _said(lambda _: "You asshole, that was easy.")),
    "LanguageMix": (0.02, False, _foreign),
}  # fmt: skip


def write(path: Path, source: Path, rows: int, *, seed: int = 1) -> Counter[str]:
    """How many rows of each kind were planted. `source`: JSON Lines of question and answer."""
    chosen = random.Random(seed)
    known = [json.loads(line) for line in source.read_text().splitlines()]
    asked = [part for row in known for part in _SENTENCE.split(row["question"]) if part]
    told = [part for row in known for part in _SENTENCE.split(row["answer"]) if part and "####" not in part]
    planted: Counter[str] = Counter()
    recent: list[Row] = []
    shares = [share for share, _, _ in PLANTED.values()]
    names = list(PLANTED)
    with path.open("w") as file:
        for _ in range(rows):
            name = chosen.choices([*names, ""], [*shares, 1 - sum(shares)])[0]
            row = _row(asked, told, chosen)
            if name:
                _, earlier, change = PLANTED[name]
                row = change(chosen.choice(recent) if earlier and recent else row, chosen)
                planted[name] += 1
            elif len(recent) < _RECENT:
                recent.append(row)
            else:
                recent[chosen.randrange(_RECENT)] = row
            file.write(json.dumps({"prompt": row["question"], "completion": row["answer"]}) + "\n")
    return planted


def _row(asked: list[str], told: list[str], chosen: random.Random) -> Row:
    parts = (chosen.choice(asked) for _ in range(4)), (chosen.choice(told) for _ in range(4))
    question, answer = (_NUMBER.sub(lambda _: str(chosen.randrange(2, 999)), " ".join(part)) for part in parts)
    return {"question": question, "answer": answer}
