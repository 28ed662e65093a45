"""Combinations of fields that cannot work: why, and the nearest that does. The API server, `ftj`, prepare and the docs read this one table.

A row is refused when all of its conditions hold. A condition is data, from which both the CEL and its Python twin are
made, so that they cannot differ. A field that is absent fulfils no condition: what is decided for the user
(`effective.resolve`, and prepare, which finds out the task) is checked again when it is known.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic.alias_generators import to_snake

from finetune_api.rules import Rule

Value = str | bool


@dataclass(frozen=True, slots=True)
class Is:
    """The field at `path` (below spec, camelCase) is one of `values`; for a list: holds one of them."""

    path: str
    values: tuple[Value, ...]

    def cel(self) -> str:
        parts = self.path.split(".")
        there = [f"has(self.{'.'.join(parts[: i + 1])})" for i in range(1, len(parts))]
        field = f"self.{self.path}"
        test = f"{field}.exists(v, {self.test('v')})" if self.path in _LISTS else self.test(field)
        return " && ".join([*(has for has in there if has not in _ALWAYS), test])

    def test(self, value: str) -> str:
        """CEL: `value`, an expression, is one of `values`."""
        if len(self.values) == 1:
            return f"{value} == {_literal(self.values[0])}"
        return f"{value} in [{', '.join(_literal(one) for one in self.values)}]"

    def holds(self, spec: Any) -> bool:
        value = spec
        for name in _attributes(self.path):
            value = getattr(value, name)
            if value is None:
                return False
        return any(item in self.values for item in value) if isinstance(value, list) else value in self.values


@functools.cache
def _attributes(path: str) -> tuple[str, ...]:
    """Names in the models of what lies on the way. Every look at a job asks the whole table: they are made once."""
    return tuple(to_snake(part) for part in path.split("."))


_LISTS = ("evaluation.metrics",)
_ALWAYS = ("has(self.method.type)",)
"""Required fields."""


_GUARDS = ("model.task", "training.optimizer", "compute.strategy", "data.packing", "training.activationCheckpointing")
"""Optional fields, the most often absent ones first: each row of the table names one."""


def _literal(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else f"'{value}'"


@dataclass(frozen=True, slots=True)
class Combination:
    """Refused when all of `when` hold. `why` and `instead` end the sentence that names the fields."""

    when: tuple[Is, ...]
    why: str
    instead: str

    @property
    def message(self) -> str:
        return f"{self.fields()} cannot go together: {self.why}; {self.instead}"

    def fields(self) -> str:
        """Such as `method.type qlora and compute.strategy zero3 or fsdp2`."""
        return " and ".join(f"{one.path} {' or '.join(map(_shown, one.values))}" for one in self.when)

    def refuses(self, spec: Any) -> bool:
        return all(one.holds(spec) for one in self.when)

    def rule(self) -> Rule:
        cel = " && ".join(f"({one.cel()})" for one in self.when)
        guard = min(self.when, key=lambda one: _GUARDS.index(one.path) if one.path in _GUARDS else len(_GUARDS))
        rest = [guard.test("v"), *(one.cel() for one in self.when if one is not guard)]
        return Rule(
            f"!({cel})",
            self.message,
            lambda spec: not self.refuses(spec),
            guard=guard.path,
            guarded=f"!({' && '.join(f'({one})' for one in rest)})",
        )


def _shown(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else value


def refused(spec: Any) -> Iterator[Combination]:
    """Rows of the table that refuse a (resolved) spec."""
    return (combination for combination in COMBINATIONS if combination.refuses(spec))


_ZERO = ("zero1", "zero2", "zero3")
_SHARDED = (*_ZERO, "fsdp2")
_BNB_OPTIMIZERS = ("adamw-8bit", "paged-adamw", "paged-adamw-8bit")


def _strategy(*names: str) -> Is:
    return Is("compute.strategy", names)


def _method(*names: str) -> Is:
    return Is("method.type", names)


def _task(*names: str) -> Is:
    return Is("model.task", names)


def _optimizer(*names: str) -> Is:
    return Is("training.optimizer", names)


COMBINATIONS: tuple[Combination, ...] = (
    Combination(
        (_method("qlora"), _strategy("zero3", "fsdp2")),
        "packed 4- and 8-bit weights cannot be sharded",
        "take zero2, which shards everything that is trained",
    ),
    Combination(
        (_method("prefix", "prompt"), Is("data.packing", (True,))),
        "virtual tokens stand before every row, and a pack has one beginning",
        "remove data.packing",
    ),
    Combination(
        (_method("prefix"), Is("training.activationCheckpointing", ("selective", "full"))),
        "the prefix is handed to the layers as a cache, which recomputing would use twice",
        "set activationCheckpointing: none, or take method prompt",
    ),
    Combination(
        (_task("seq2seq-lm", "sequence-classification"), Is("data.packing", (True,))),
        "only causal language models take packed rows",
        "remove data.packing; rows of similar length are put together",
    ),
    Combination(
        (_task("sequence-classification"), Is("data.format", ("messages", "prompt-completion", "instruction", "text"))),
        "a classifier learns labels",
        "set data.format: classification, with rows of text and label (or labels)",
    ),
    Combination(
        (_task("causal-lm", "seq2seq-lm"), Is("data.format", ("classification",))),
        "a language model learns text, not labels",
        "set model.task: sequence-classification",
    ),
    Combination(
        (_task("seq2seq-lm"), Is("data.format", ("messages", "text"))),
        "an encoder-decoder model learns pairs of input and output",
        "set data.format: prompt-completion or instruction",
    ),
    Combination(
        (_task("seq2seq-lm"), Is("data.lossOn", ("assistant", "all"))),
        "the decoder is trained on outputs alone",
        "remove data.lossOn",
    ),
    Combination(
        (_task("sequence-classification"), Is("evaluation.metrics", ("perplexity", "exact-match"))),
        "a classifier writes no text",
        "name some of loss, accuracy, f1, precision, recall",
    ),
    Combination(
        (_task("causal-lm", "seq2seq-lm"), Is("evaluation.metrics", ("accuracy", "f1", "precision", "recall"))),
        "a language model has no labels",
        "name some of loss, perplexity, exact-match",
    ),
    Combination(
        (_task("sequence-classification"), Is("training.earlyStopping.metric", ("perplexity", "exact-match"))),
        "a classifier writes no text",
        "take loss, accuracy, f1, precision or recall",
    ),
    Combination(
        (
            _task("causal-lm", "seq2seq-lm"),
            Is("training.earlyStopping.metric", ("accuracy", "f1", "precision", "recall")),
        ),
        "a language model has no labels",
        "take loss, perplexity or exact-match",
    ),
    Combination(
        (_optimizer("muon"), _method("lora", "qlora", "dora", "prefix", "prompt")),
        "Muon orthogonalises updates of whole weight matrices",
        "take adamw, or method full",
    ),
    Combination(
        (_optimizer("muon", "adafactor"), _strategy(*_SHARDED)),
        "its update needs whole matrices, which sharding cuts",
        "take strategy ddp, or optimizer adamw",
    ),
    Combination(
        (_optimizer(*_BNB_OPTIMIZERS), _strategy(*_SHARDED)),
        "bitsandbytes keeps its states by whole parameters",
        "take strategy ddp, or optimizer adamw, whose states are sharded instead",
    ),
    Combination(
        (_optimizer("paged-adamw", "paged-adamw-8bit"), Is("compute.device", ("cpu",))),
        "paging moves states between a GPU's memory and the host's",
        "take adamw or adamw-8bit",
    ),
    Combination(
        (Is("compute.offload.optimizer", ("cpu", "nvme")), _strategy("ddp")),
        "only DeepSpeed and FSDP2 can offload",
        "take strategy zero2, or remove compute.offload",
    ),
    Combination(
        (Is("compute.offload.parameters", ("cpu", "nvme")), _strategy("ddp", "zero1", "zero2")),
        "only sharded weights can be offloaded",
        "take strategy zero3, or fsdp2 for cpu",
    ),
    Combination(
        (Is("compute.offload.optimizer", ("nvme",)), _strategy("zero1", "zero2", "fsdp2")),
        "only ZeRO-3 writes to NVMe",
        "take strategy zero3, or optimizer: cpu",
    ),
    Combination(
        (Is("compute.offload.parameters", ("nvme",)), _strategy("fsdp2")),
        "only ZeRO-3 writes to NVMe",
        "take strategy zero3, or parameters: cpu",
    ),
    Combination(
        (Is("training.compile", (True,)), _strategy("zero3")),
        "DeepSpeed's hooks break the compiled graph in every layer",
        "take strategy fsdp2 or zero2, or remove training.compile",
    ),
)
