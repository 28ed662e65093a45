"""From the models to the CustomResourceDefinition: a structural schema with defaults, ranges, CEL rules and columns.

`python -m finetune_api.crdgen` writes `crds/finetunejobs.yaml` and the chart's copy; `--check` fails when they drift.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from finetune_api import GROUP, KIND, PLURAL, VERSION
from finetune_api.finetunejob import FineTuneJob
from finetune_api.rules import Rule
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus

MAX_BYTES = 180_000

COLUMNS: tuple[tuple[str, str, str, int], ...] = (
    # name, type, path, priority (1: only with -o wide)
    ("Phase", "string", ".status.phase", 0),
    ("Progress", "string", ".status.progress.summary", 0),
    ("Loss", "number", ".status.progress.loss", 0),
    ("ETA", "string", ".status.progress.eta", 0),
    ("GPUs", "integer", ".status.gpus", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Model", "string", ".spec.model.uri", 1),
    ("Method", "string", ".spec.method.type", 1),
    ("Step", "integer", ".status.progress.step", 1),
    ("Cost", "number", ".status.plan.cost", 1),
    ("Spent", "number", ".status.usage.cost", 1),
    ("Reason", "string", ".status.reason", 1),
)

_LONG_ENUM = 20
"""More words than this cost more bytes than they are worth here: the operator refuses a wrong one at once, and `ftj` before that."""

_COPIED = (
    "type",
    "enum",
    "pattern",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "maxProperties",
    "format",
    "default",
)


def structural(model: type[BaseModel]) -> dict[str, Any]:
    """The model as a structural schema: no $ref, no anyOf, every node typed, CEL rules of `RULES` beside it."""
    return _model(model, model.model_json_schema(by_alias=True, mode="validation"))


def _model(model: type[BaseModel], schema: dict[str, Any]) -> dict[str, Any]:
    definitions = schema.get("$defs", {})
    classes = {c.__name__: c for c in _classes(model)}

    def convert(node: dict[str, Any], *, top: bool = False) -> dict[str, Any]:
        node = dict(node)
        if "$ref" in node:
            name = node.pop("$ref").rsplit("/", 1)[-1]
            node = {
                **_object(classes[name], definitions[name]),
                **{k: v for k, v in node.items() if k in ("description", "default")},
            }
            return node
        if "allOf" in node and len(node["allOf"]) == 1:
            return convert({**node.pop("allOf")[0], **node})
        if "anyOf" in node:
            branches = [b for b in node.pop("anyOf") if b.get("type") != "null"]
            if node.get("x-kubernetes-int-or-string") or any(b.get("x-kubernetes-int-or-string") for b in branches):
                return {"x-kubernetes-int-or-string": True}
            inner = convert(branches[0])
            if node.get("description"):
                inner["description"] = node["description"]
            extra = {k: v for k, v in node.items() if k in _COPIED[1:] and not (k == "default" and v is None)}
            return {**inner, **extra, **{k: v for k, v in node.items() if k.startswith("x-kubernetes")}}
        out = {k: node[k] for k in _COPIED if k in node and not (k == "default" and node[k] is None)}
        out |= {k: v for k, v in node.items() if k.startswith("x-kubernetes") or k == "description"}
        if out.get("x-kubernetes-int-or-string"):
            return {"x-kubernetes-int-or-string": True}
        if "const" in node:
            out |= {"type": "string", "enum": [node["const"]]}
        # OpenAPI v3.0 has no numeric exclusive bounds: a minimum and a flag.
        for bound, flag in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
            if bound in node:
                out[flag], out[bound] = node[bound], True
        if len(out.get("enum", ())) > _LONG_ENUM:
            del out["enum"]
        if "enum" in out and "type" not in out:
            out["type"] = "string"
        if out.get("type") == "array" and "items" in node:
            out["items"] = convert(node["items"])  # a list is atomic unless it says otherwise
        if out.get("type") == "object":
            values = node.get("additionalProperties")
            if isinstance(values, dict) and values:
                out["additionalProperties"] = convert(values)
        if out.get("x-kubernetes-preserve-unknown-fields"):
            out.pop("additionalProperties", None)
        return out

    def _object(cls: type[BaseModel], node: dict[str, Any]) -> dict[str, Any]:
        out: dict[str, Any] = {"type": "object"}
        if node.get("description"):
            out["description"] = " ".join(node["description"].split())
        out["properties"] = {name: convert(child) for name, child in node.get("properties", {}).items()}
        if node.get("required"):
            out["required"] = node["required"]
        rules: Sequence[Rule] = getattr(cls, "RULES", ())
        for rule in rules:
            if rule.field is not None:
                out["properties"][rule.field].setdefault("x-kubernetes-validations", []).append(rule.schema())
        if own := [rule for rule in rules if rule.field is None]:
            out["x-kubernetes-validations"] = _validations(own)
        return out

    return _object(model, schema)


def _validations(rules: Sequence[Rule]) -> list[dict[str, Any]]:
    """Join rules that have a guard into one expression that reads each guard once.

    The API server evaluates every rule on every write, status writes too, and pays for each field that a rule reads: it
    makes a copy of the schemas of all fields beside it.
    """
    groups: dict[str, dict[str, list[Rule]]] = {}
    for rule in rules:
        if rule.guard is not None:
            group, guard = rule.guard.split(".", 1)
            groups.setdefault(group, {}).setdefault(guard, []).append(rule)
    validations = [rule.schema() for rule in rules if rule.guard is None]
    if groups:
        parts = []
        for group, guarded in groups.items():
            inner = " && ".join(
                f"(!has(g.{guard}) || [g.{guard}].all(v, {' && '.join(rule.guarded for rule in some)}))"
                for guard, some in guarded.items()
            )
            parts.append(f"[self.{group}].all(g, {inner.replace(f'self.{group}.', 'g.')})")
        joined = [rule for rule in rules if rule.guard is not None]
        validations.append({"rule": " && ".join(parts), "messageExpression": _broken(joined)})
    return validations


def _broken(rules: Sequence[Rule]) -> str:
    """The messages of all rules that do not hold."""
    return " + ".join(f"({rule.cel} ? '' : {json.dumps(rule.message + '. ')})" for rule in rules)


def _classes(model: type[BaseModel]) -> set[type[BaseModel]]:
    found: set[type[BaseModel]] = set()

    def walk(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            if annotation not in found:
                found.add(annotation)
                for field in annotation.model_fields.values():
                    walk(field.annotation)
        for argument in getattr(annotation, "__args__", ()):
            walk(argument)

    walk(model)
    return found


def _sparse(node: Any) -> Any:
    """Move defaults into descriptions. The API server would write a default into each job, and read, compare and store it with
    each write."""
    if isinstance(node, list):
        return [_sparse(one) for one in node]
    if not isinstance(node, dict):
        return node
    out = {name: _sparse(value) for name, value in node.items()}
    if "type" in node and not isinstance(node["type"], dict) and "default" in node:
        default = out.pop("default")
        if "properties" not in node:
            out["description"] = f"{node.get('description', '')} Default: {json.dumps(default)}.".strip()
    return out


def _sparse_spec(spec: dict[str, Any]) -> dict[str, Any]:
    """Keep the defaults of spec's own fields, and an empty group where rules read a group."""
    rules = FineTuneJobSpec.RULES
    properties = {}
    for name, node in spec["properties"].items():
        group = "properties" in node
        properties[name] = _sparse(node) if group else node
        if group and name not in spec["required"] and any(r.field == name or f"self.{name}." in r.cel for r in rules):
            properties[name]["default"] = {}
    return {**spec, "properties": properties}


def _undescribed(node: Any) -> Any:
    if isinstance(node, dict):
        return {k: _undescribed(v) for k, v in node.items() if not (k == "description" and isinstance(v, str))}
    return node


def crd() -> dict[str, Any]:
    """The CustomResourceDefinition of FineTuneJob."""
    status = _sparse(structural(FineTuneJobStatus))
    for group in status["properties"].values():
        if "properties" in group:  # one writer: its managedFields need not name each field
            group["x-kubernetes-map-type"] = "atomic"
    spec = _sparse_spec(structural(FineTuneJobSpec))
    data = spec["properties"]["data"]["properties"]
    for same in ("validation", "test"):  # locations, explained in `train`
        data[same] |= {"items": _undescribed(data[same]["items"])}
    method = spec["properties"]["method"]["properties"]
    method["initFrom"] = _undescribed(method["initFrom"]) | {"description": method["initFrom"]["description"]}
    for written in ("workspace", "output"):
        location = spec["properties"][written]
        spec["properties"][written] = _undescribed(location) | {"description": location["description"]}
    stages = spec["properties"]["pods"]["properties"]
    for stage in stages.keys() - {"common"}:
        stages[stage] = _undescribed(stages[stage])  # the same fields four times; `common` explains them
    # Nothing is green before it was looked at: kstatus reads a status that is behind its generation as in progress.
    status["default"] = {"observedGeneration": -1}
    schema = {
        "type": "object",
        "description": FineTuneJob.__doc__,
        "required": ["spec"],
        "x-kubernetes-validations": [rule.schema() for rule in FineTuneJob.RULES],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status,
        },
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["ftj"],
                "categories": ["all", "ml"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "selectableFields": [{"jsonPath": ".status.phase"}],
                    "additionalPrinterColumns": [
                        {"name": name, "type": kind, "jsonPath": path, **({"priority": priority} if priority else {})}
                        for name, kind, path, priority in COLUMNS
                    ],
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


_DEEP, _INLINE, _NESTED = 4, 220, 3


def to_yaml(value: Any, indent: int = 0) -> str:
    """Block YAML whose scalars and small leaves are JSON: needs no library, and any YAML reader takes it."""
    pad = " " * indent
    short = json.dumps(value, ensure_ascii=False)
    if indent > _DEEP and len(short) <= _INLINE and short.count("{") < _NESTED:
        return short
    if isinstance(value, dict) and value:
        lines = []
        for key, item in value.items():
            body = to_yaml(item, indent + (1 if isinstance(item, dict) else 0))
            nested = "\n" in body or body.startswith((" ", "-"))
            lines.append(f"{pad}{key}:" + (f"\n{body}" if nested else f" {body}"))
        return "\n".join(lines)
    if isinstance(value, list) and value:
        lines = []
        for item in value:
            body = to_yaml(item, indent + 2)  # as wide as the dash and its space
            lines.append(f"{pad}- " + (body.lstrip() if isinstance(item, dict | list) else body))
        return "\n".join(lines)
    return short


HEADER = "# Generated from the models in crds/finetune_api by `make crds`. Do not edit.\n"


def targets(root: Path) -> dict[Path, str]:
    """Every generated file and its text."""
    text = to_yaml(crd()) + "\n"
    chart = (
        "{{- if .Values.crds.install }}\n"
        + HEADER
        + text.replace(
            "metadata:\n",
            'metadata:\n annotations:\n  {{- if .Values.crds.keep }}\n  "helm.sh/resource-policy": keep\n  {{- end }}\n  "finetune.dev/generated": "true"\n',
            1,
        )
        + "{{- end }}\n"
    )
    return {
        root / "crds" / "finetunejobs.yaml": HEADER + text,
        root / "charts" / "finetune-operator" / "templates" / "crd.yaml": chart,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the CRD from the models.")
    parser.add_argument("--check", action="store_true", help="fail when the files differ from the models")
    arguments = parser.parse_args(argv)
    root = Path(__file__).resolve().parents[2]
    stale = []
    for path, text in targets(root).items():
        if path.exists() and path.read_text() == text:
            continue
        stale.append(path.relative_to(root))
        if not arguments.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    size = len(json.dumps(crd(), separators=(",", ":")))  # as it is stored, and as client-side apply annotates it
    if size > MAX_BYTES:
        print(
            f"the CRD has {size} bytes, more than the {MAX_BYTES} that client-side apply allows with room to spare",
            file=sys.stderr,
        )
        return 1
    if arguments.check and stale:
        print(f"out of date: {', '.join(map(str, stale))}; run `make crds`", file=sys.stderr)
        return 1
    print(f"CRD: {size} bytes" + (f", wrote {', '.join(map(str, stale))}" if stale else ", up to date"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
