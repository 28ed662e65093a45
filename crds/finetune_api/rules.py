"""Rules across fields, each one twice: as CEL for the API server, as Python for local runs.

A rule stands beside its model through `@rules(...)`. The message says what to do, and is the same in both places; a
cluster test feeds the same objects to both and expects the same verdict.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, model_validator

M = TypeVar("M", bound=type[BaseModel])


@dataclass(frozen=True, slots=True)
class Rule:
    """`cel` must hold on the API server; `check` is its twin here (None: only the API server can know).

    `field`: the rule applies to this field of the model, and `self` is the field's value. `guard` and `guarded`: the same
    rule in two parts, a field without which it holds, and the rest, in which `v` is that field's value.
    """

    cel: str
    message: str
    check: Callable[[Any], bool] | None = None
    field: str | None = None
    guard: str | None = None
    guarded: str = ""

    def schema(self) -> dict[str, str]:
        return {"rule": self.cel, "message": self.message}


class RuleBroken(ValueError):
    """A rule's message, raised inside pydantic's validation so that it carries the field's path."""


class Ruled(BaseModel):
    """A model whose class attribute `RULES` is enforced here and written into the CRD by `crdgen`."""

    @model_validator(mode="after")
    def _obey(self) -> Ruled:
        for rule in getattr(type(self), "RULES", ()):
            if rule.check is not None and not rule.check(self):
                raise RuleBroken(rule.message)
        return self


def fixed(field: str, cel: str = "self == oldSelf") -> Rule:
    """A field of spec that may not change after creation; with `cel`, a part of it."""
    return Rule(
        cel,
        f"spec.{field} cannot change once the job exists: copy the manifest to a new name, or delete the job first",
        field=field,
    )
