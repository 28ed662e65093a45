"""Parts of the sentences in which a model or a name in the spec is refused."""

from __future__ import annotations

from collections.abc import Iterable

_SHOWN = 12


def some(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def leaves(names: Iterable[str]) -> list[str]:
    """The last parts of dotted names, each once, sorted."""
    return sorted({name.rsplit(".", 1)[-1] for name in names})


def named(wanted: str, names: Iterable[str]) -> list[str]:
    """Those of `names` that are `wanted` or end with it as a whole part, which is how adapters name layers."""
    return [name for name in names if name == wanted or name.endswith(f".{wanted}")]
