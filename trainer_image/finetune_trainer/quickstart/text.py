"""Customers' messages, what the base model is asked about them, and the task that it does not know yet."""

from __future__ import annotations

import random
from typing import NamedTuple

NAMES = [
    "Anna",
    "Ben",
    "Clara",
    "David",
    "Emma",
    "Felix",
    "Grace",
    "Henry",
    "Iris",
    "Jack",
    "Karen",
    "Leo",
    "Maria",
    "Noah",
    "Olivia",
    "Paul",
    "Quinn",
    "Rosa",
    "Simon",
    "Tina",
    "Uma",
    "Victor",
    "Wendy",
    "Xavier",
    "Yara",
    "Zoe",
    "Oscar",
    "Nina",
    "Martin",
    "Lucy",
]
CITIES = [
    "Berlin",
    "Paris",
    "London",
    "Madrid",
    "Rome",
    "Vienna",
    "Prague",
    "Dublin",
    "Lisbon",
    "Oslo",
    "Athens",
    "Warsaw",
    "Zurich",
    "Geneva",
    "Munich",
    "Hamburg",
    "Milan",
    "Turin",
    "Porto",
    "Seville",
    "Lyon",
    "Nice",
    "Ghent",
    "Bruges",
    "Leeds",
    "York",
    "Bath",
    "Cork",
    "Graz",
    "Basel",
]
PRODUCTS = [
    "lamp",
    "chair",
    "table",
    "printer",
    "phone",
    "laptop",
    "camera",
    "kettle",
    "toaster",
    "blender",
    "clock",
    "mirror",
    "shelf",
    "desk",
    "sofa",
    "heater",
    "fan",
    "radio",
    "speaker",
    "monitor",
    "keyboard",
    "mouse",
    "router",
    "tablet",
    "watch",
    "drill",
    "ladder",
    "tent",
    "bicycle",
    "helmet",
]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
PROBLEMS = [
    "broken",
    "late",
    "missing",
    "dirty",
    "scratched",
    "loud",
    "leaking",
    "slow",
    "bent",
    "faulty",
    "wet",
    "dented",
]

FIELDS = {"name": NAMES, "city": CITIES, "product": PRODUCTS, "day": DAYS, "problem": PROBLEMS}

MESSAGES = (
    "Hello, this is {name} from {city}. The {product} I bought on {day} is {problem}.",
    "Good morning, my name is {name} and I live in {city}. On {day} I bought a {product} and it is {problem}.",
    "The {product} that came on {day} is {problem}. Please help. Best wishes from {city}, {name}.",
    "I am {name}. My {product} is {problem}. I ordered it on {day} to my home in {city}.",
    "On {day} you sent a {product} to {city} and it is {problem}. My name is {name}.",
    "Dear team, a {problem} {product} came to {city} on {day}. Can you help me? Yours, {name}.",
)

QUESTIONS = ("What is the {field}?", "Tell me the {field}.")
LAYOUTS = {
    "label": "{name} | {city}",
    "note": "{problem} - {product}",
    "card": "{name}, {city}, {day}",
    "list": "{product} / {problem} / {day}",
    "summary": "{name} | {product} | {problem}",
    "line": "{city} - {day} - {product}",
    "entry": "{day}, {product}",
    "record": "{problem} | {city} | {name} | {product}",
    "header": "{product} - {name}",
    "slip": "{city} / {name} / {problem} / {day}",
    "memo": "{problem}, {day}, {name}",
    "tag": "{product} | {day} | {city} | {problem} | {name}",
}
QUESTION_SHARE = 0.3

NEW_LAYOUT = "ticket"
NEW_FORM = "{day} | {name} | {city} | {product} | {problem}"


class Row(NamedTuple):
    prompt: str
    answer: str

    def messages(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": self.prompt}, {"role": "assistant", "content": self.answer}]


def base_row(rng: random.Random) -> Row:
    """A row of the tasks that the base model is trained on."""
    values, message = _message(rng)
    if rng.random() < QUESTION_SHARE:
        field = rng.choice(list(FIELDS))
        return Row(f"{message} {rng.choice(QUESTIONS).format(field=field)}", values[field])
    word = rng.choice(list(LAYOUTS))
    return Row(f"{message} Write the {word}.", LAYOUTS[word].format(**values))


def new_row(rng: random.Random) -> Row:
    """A row of the task that fine-tuning teaches."""
    values, message = _message(rng)
    return Row(f"{message} Write the {NEW_LAYOUT}.", NEW_FORM.format(**values))


def _message(rng: random.Random) -> tuple[dict[str, str], str]:
    values = {field: rng.choice(words) for field, words in FIELDS.items()}
    return values, rng.choice(MESSAGES).format(**values)
