"""The quickstart's rows: enough of them, the new task among a few old ones, and what was made is found again."""

from __future__ import annotations

import json
import random
from pathlib import Path

from finetune_trainer import sealed
from finetune_trainer.data import formats
from finetune_trainer.quickstart import __main__ as command
from finetune_trainer.quickstart.data import write_data
from finetune_trainer.quickstart.text import FIELDS, LAYOUTS, MESSAGES, NEW_FORM, NEW_LAYOUT, base_row, new_row


def test_the_new_task_is_new_and_answerable():
    assert NEW_LAYOUT not in LAYOUTS
    assert NEW_FORM not in LAYOUTS.values()
    words = [word for values in FIELDS.values() for word in values]
    assert len(words) == len(set(words)), "a value belongs to one field"
    for message in MESSAGES:
        assert all(f"{{{field}}}" in message for field in FIELDS), "every message holds every field"
    rng = random.Random(1)
    for _ in range(200):
        row = new_row(rng)
        assert all(part in row.prompt for part in row.answer.split(" | "))
        assert NEW_LAYOUT not in base_row(rng).prompt
    separators = {separator for form in LAYOUTS.values() for separator in form.split() if "{" not in separator}
    assert "|" in separators, "the base model has written every token of the new answers"


def test_the_data_is_what_prepare_reads_and_the_same_for_a_seed(tmp_path: Path):
    for name, seed in (("a", 42), ("b", 42), ("c", 43)):
        (tmp_path / name).mkdir()
        write_data(tmp_path / name, seed)
    texts = [(tmp_path / name / "train.jsonl").read_text() for name in "abc"]
    assert texts[0] == texts[1] != texts[2]
    rows = [json.loads(line) for line in texts[0].splitlines()]
    assert len(rows) >= 2000
    examples = [formats.read(row, formats.detect(row)) for row in rows]
    new = [example for example in examples if NEW_LAYOUT in example.messages[0]["content"]]
    assert 0.9 < len(new) / len(rows) < 1
    assert len(new) * 0.1 > 230, "a tenth of them still tests the new task on 200 rows"


def test_what_was_made_is_found_and_what_was_damaged_is_not(tmp_path: Path):
    recipe = {"kind": "quickstart", "recipe": "r", "seed": 42}
    with sealed.sealing(tmp_path / "base", dict(recipe)) as folder:
        (folder / "model.safetensors").write_text("weights")
    assert command._is_there(tmp_path / "base", recipe)
    assert not command._is_there(tmp_path / "base", {**recipe, "seed": 43})
    assert not command._is_there(tmp_path / "other", recipe)
    (tmp_path / "base" / "model.safetensors").write_text("torn")
    assert not command._is_there(tmp_path / "base", recipe)
