"""The smallest JSON merge patch (RFC 7386) from one object to another."""

from __future__ import annotations

from typing import Any


def difference(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What changes `before` into `after`: removed fields are null, lists are replaced whole. Empty: they are equal."""
    patch: dict[str, Any] = {name: None for name in before if name not in after}
    for name, value in after.items():
        old = before.get(name)
        if isinstance(value, dict) and isinstance(old, dict):
            if deeper := difference(old, value):
                patch[name] = deeper
        elif name not in before or old != value:
            patch[name] = value
    return patch
