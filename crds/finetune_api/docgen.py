"""The reference from the models: `python -m finetune_api.docgen` writes pages of docs/; `--check` fails when one differs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune_api import API_VERSION, KIND, checks_page, combinations_page, status_page
from finetune_api.crdgen import COLUMNS, structural
from finetune_api.location import Location
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus

_HEAD = f"""# {KIND}

<!-- Generated from the models in crds/finetune_api by `make crds`. Do not edit. -->

`apiVersion: {API_VERSION}`, `kind: {KIND}`, short name `ftj`. `kubectl explain ftj.spec` prints the same.

A field without a default and without "required" may be left out: then it is decided for you, and
`ftj describe NAME --effective` prints what it became. Unknown fields are refused. A job's name has 1 to 40 characters: lower-case letters, digits and `-`.

Columns of `kubectl get ftj`: {", ".join(name for name, _, _, priority in COLUMNS if not priority)}. With `-o wide` also
{", ".join(name for name, _, _, priority in COLUMNS if priority)}.

"""


def text() -> str:
    """The page of all fields."""
    spec, status = structural(FineTuneJobSpec), structural(FineTuneJobStatus)
    parts = [_HEAD, "## spec\n\n", _table(_leaves(spec, skip={"pods"}))]
    parts.append("\n## Locations\n\nWherever something lies, it is named in the same way. ")
    parts.append("`workspace` and `output` take pvc:// only.\n\n")
    parts.append(_table(_leaves(structural(Location))))
    parts.append(
        "\n## spec.pods\n\nSettings of pods: `common` for every stage, then `prepare`, `train` and `publish` on top, "
    )
    parts.append("each with these fields. Maps are merged by key, named lists by name, tolerations are appended.\n\n")
    parts.append(_table(_leaves(spec["properties"]["pods"]["properties"]["common"])))
    parts.append("\n## Rules\n\nThe API server, `ftj` and local runs hold a job to these:\n\n")
    parts += [
        f"- {message}\n" for message in sorted({*_rules(spec), *(rule.message for rule in FineTuneJobSpec.RULES)})
    ]
    parts.append("\n## status\n\nWritten by the operator alone.\n\n")
    parts.append(_table(_leaves(status)))
    return "".join(parts)


def _leaves(
    node: dict[str, Any], path: str = "", skip: frozenset[str] | set[str] = frozenset()
) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Every field with its path and whether its parent requires it. Groups come before what is in them."""
    required = node.get("required", [])
    for name, child in node.get("properties", {}).items():
        if name in skip:
            continue
        here = f"{path}.{name}" if path else name
        inner = child.get("items", {}) if child.get("type") == "array" else child
        yield here, child, name in required
        if "properties" in inner and not _is_location(inner):
            yield from _leaves(inner, here + ("[]" if child.get("type") == "array" else ""))


def _table(fields: Iterator[tuple[str, dict[str, Any], bool]]) -> str:
    rows = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for path, node, required in fields:
        default = "required" if required else f"`{json.dumps(node['default'])}`" if _has_default(node) else ""
        meaning = _escape(" ".join([node.get("description", ""), _limits(node)]).strip())
        rows.append(f"| `{path}` | {_type(node)} | {default} | {meaning} |")
    return "\n".join(rows) + "\n"


def _is_location(node: dict[str, Any]) -> bool:
    return bool(node.get("properties", {}).keys() == structural(Location)["properties"].keys())


def _has_default(node: dict[str, Any]) -> bool:
    """A group's default is that of its fields."""
    return "default" in node and "properties" not in node


def _type(node: dict[str, Any]) -> str:
    if node.get("x-kubernetes-int-or-string"):
        return "quantity"
    kind = str(node.get("type", "object"))
    if _is_location(node):
        return "[location](#locations)"
    if kind == "array":
        return f"list of {_type(node['items'])}"
    if kind == "object" and isinstance(node.get("additionalProperties"), dict):
        return f"map of {_type(node['additionalProperties'])}"
    return "group" if "properties" in node else kind


def _limits(node: dict[str, Any]) -> str:
    if "enum" in node:
        return "One of " + ", ".join(f"`{value}`" for value in node["enum"]) + "."
    if node.get("type") == "array" and "enum" in node.get("items", {}):
        return "Of " + ", ".join(f"`{value}`" for value in node["items"]["enum"]) + "."
    low, high = node.get("minimum"), node.get("maximum")
    if high in (2**31 - 1, 2**20):
        high = None
    more = "more than" if node.get("exclusiveMinimum") else "at least"
    less = "less than" if node.get("exclusiveMaximum") else "at most"
    limits = [f"{word} {value:g}" for word, value in ((more, low), (less, high)) if value is not None]
    return " and ".join(limits).capitalize() + "." if limits else ""


def _rules(node: Any) -> Iterator[str]:
    """Messages of every rule below `node`."""
    if isinstance(node, dict):
        for rule in node.get("x-kubernetes-validations", []):
            if "message" in rule:
                yield rule["message"]
        for child in node.values():
            yield from _rules(child)


def _escape(meaning: str) -> str:
    return meaning.replace("|", "\\|")


PAGES = {
    "reference/api.md": text,
    "reference/combinations.md": combinations_page.text,
    "checks.md": checks_page.text,
    "status.md": status_page.text,
}


def main(argv: list[str] | None = None) -> int:
    folder = Path(__file__).resolve().parents[2] / "docs"
    texts = {folder / name: page() for name, page in PAGES.items()}
    stale = [path for path, page in texts.items() if not path.exists() or path.read_text() != page]
    if stale and "--check" in (sys.argv[1:] if argv is None else argv):
        print(f"out of date: {', '.join(path.name for path in stale)}; run `make crds`", file=sys.stderr)
        return 1
    (folder / "reference").mkdir(parents=True, exist_ok=True)
    for path in stale:
        path.write_text(texts[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
