"""The labels of a classifier, which the training data names: first in the order in which they are met, at last sorted."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import numpy as np

from finetune_trainer.data.formats import InvalidRow, Label

_KINDS = {str: "texts", int: "numbers", bool: "true or false"}
_SHOWN = 8


@dataclass
class LabelSet:
    """Collects labels row by row. All rows must have one label, or all of them a list; and labels must be of one type."""

    multi_label: bool | None = None
    """None until the first row."""
    _numbers: dict[Label, int] = field(default_factory=dict)

    def add(self, label: Label | tuple[Label, ...], *, learn: bool) -> tuple[int, ...]:
        """Numbers of a row's labels in the order of their first appearance. `learn`: the row is training data, which may bring new ones.

        Raises InvalidRow with one clause that says what is wrong.
        """
        several = isinstance(label, tuple)
        if self.multi_label is None:
            self.multi_label = several
        elif several != self.multi_label:
            have, had = ("labels", "label") if several else ("label", "labels")
            raise InvalidRow(
                f"has a field {have!r}, but the rows before it have {had!r}", "WrongType", "write all rows alike"
            )
        labels = label if isinstance(label, tuple) else (label,)
        for one in labels:
            self._check(one, learn)
        return tuple(sorted({self._numbers.setdefault(one, len(self._numbers)) for one in labels}))

    def _check(self, label: Label, learn: bool) -> None:
        if self._numbers and type(label) is not (kind := type(next(iter(self._numbers)))):
            raise InvalidRow(
                f"has the label {_shown(label)}, but those before it are {_KINDS[kind]}", "WrongType", "write all alike"
            )
        if not learn and label not in self._numbers:
            raise InvalidRow(
                f"has the label {_shown(label)}, but those of the training rows are {self._known()}",
                "WrongType",
                "add training rows with it, or correct it",
            )

    def _known(self) -> str:
        names = [_shown(label) for label in self._sorted()]
        return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")

    def _sorted(self) -> list[Label]:
        return sorted(self._numbers)  # type: ignore[type-var]  # they are of one type

    def names(self) -> list[str]:
        """Sorted, numbers by their size, as a model's `id2label` writes them."""
        return [label if isinstance(label, str) else json.dumps(label) for label in self._sorted()]

    def order(self) -> np.ndarray:
        """int64 of shape [labels]: the place among the sorted ones of each label, by the number that `add` gave."""
        order = np.zeros(len(self._numbers), dtype=np.int64)
        for place, label in enumerate(self._sorted()):
            order[self._numbers[label]] = place
        return order


def _shown(label: Label) -> str:
    return json.dumps(label, ensure_ascii=False)[:60]
