"""The table of what cannot go together: every row refuses what it names, and nothing is decided for a user that it refuses."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from finetune_api.combinations import COMBINATIONS, Combination, refused
from finetune_api.effective import resolve
from finetune_api.spec import FineTuneJobSpec
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

BASE: dict[str, Any] = {
    "model": {"uri": "pvc://models/base"},
    "method": {"type": "lora"},
    "data": {"train": [{"uri": "pvc://datasets/rows.jsonl"}]},
    "workspace": {"uri": "pvc://scratch"},
    "output": {"uri": "pvc://models/out"},
}
NEEDED = {  # what other rules ask for beside a value
    ("compute.offload.optimizer", "nvme"): {"compute.offload.nvmePath": "/nvme"},
    ("compute.offload.parameters", "nvme"): {"compute.offload.nvmePath": "/nvme"},
    ("training.optimizer", "muon"): {"method.type": "full"},
}
STRATEGIES = ("ddp", "zero1", "zero2", "zero3", "fsdp2")


def spec_with(values: dict[str, Any]) -> dict[str, Any]:
    """BASE with values at dotted paths, and with what they need."""
    wanted = dict(values)
    for item in values.items():
        if not isinstance(item[1], bool | list):
            wanted = NEEDED.get(item, {}) | wanted
    body: dict[str, Any] = {key: dict(value) for key, value in BASE.items()}
    for path, value in wanted.items():
        at = body
        *parents, last = path.split(".")
        for part in parents:
            at = at.setdefault(part, {})
        at[last] = [value] if path == "evaluation.metrics" else value
    return body


def cells(combination: Combination) -> list[dict[str, Any]]:
    """Every choice of values that the row names."""
    choices = [[(one.path, value) for value in one.values] for one in combination.when]
    return [dict(choice) for choice in itertools.product(*choices)]


CELLS = [(combination, cell) for combination in COMBINATIONS for cell in cells(combination)]


@pytest.mark.parametrize(
    ("combination", "cell"), CELLS, ids=lambda value: str(value) if isinstance(value, dict) else ""
)
def test_each_cell_is_refused_with_its_reason_and_each_of_its_halves_is_not(
    combination: Combination, cell: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError, match="cannot go together") as refusal:
        FineTuneJobSpec.model_validate(spec_with(cell))
    assert combination.why in str(refusal.value)
    assert combination.instead in str(refusal.value)
    for path in cell:
        rest = {other: value for other, value in cell.items() if other != path}
        assert not combination.refuses(FineTuneJobSpec.model_validate(spec_with(rest)))


def test_messages_are_one_sentence_that_names_the_fields() -> None:
    for combination in COMBINATIONS:
        assert len(combination.message) < 320
        assert "\n" not in combination.message
        assert not combination.message.endswith(".")
        for one in combination.when:
            assert one.path in combination.message


OPTIONS: dict[str, tuple[Any, ...]] = {
    "method.type": ("lora", "qlora", "dora", "prefix", "prompt", "full"),
    "model.task": ("causal-lm", "seq2seq-lm", "sequence-classification"),
    "data.packing": (True, False),
    "data.format": ("messages", "prompt-completion", "classification"),
    "training.optimizer": ("adamw", "adamw-8bit", "paged-adamw", "adafactor", "muon"),
    "training.compile": (True, False),
    "training.activationCheckpointing": ("none", "selective", "full"),
    "compute.device": ("cpu", "cuda"),
    "compute.nodes": (1, 2),
    "compute.offload.optimizer": ("none", "cpu", "nvme"),
    "compute.offload.parameters": ("none", "cpu"),
}


@settings(max_examples=300, deadline=None)
@given(st.fixed_dictionaries({}, optional={path: st.sampled_from(values) for path, values in OPTIONS.items()}))
def test_what_is_decided_is_refused_only_where_no_strategy_would_do(choice: dict[str, Any]) -> None:
    try:
        spec = FineTuneJobSpec.model_validate(spec_with(choice))
    except ValidationError:
        return
    decided = resolve(spec, decided={})
    assert resolve(decided, decided={}) == decided
    assert any(refused(resolve(spec))) == any(refused(decided)), "a spec that cannot work is refused at once"
    if any(refused(decided)):
        for strategy in STRATEGIES:
            other = decided.model_copy(update={"compute": decided.compute.model_copy(update={"strategy": strategy})})
            assert any(refused(other)), f"{strategy} would have done"
