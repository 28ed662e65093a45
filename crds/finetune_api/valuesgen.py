"""The chart's `trainer.defaults` is checked as `spec.pods.common` is, with what else `PlatformDefaults` has beside it: the
schema of one is written from the others.

`python -m finetune_api.valuesgen` rewrites `definitions.platformDefaults` in the chart's values.schema.json; `--check` fails
when it differs. Everything else in that file is written by hand.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from finetune_api.crdgen import structural
from finetune_api.effective import PlatformDefaults
from finetune_api.pods import PodSettings

_ELSEWHERE = ("pods", "ttlSecondsAfterFinished")
"""Not in `trainer.defaults`: the pods' fields are its top level, and the other is the value `jobs.ttlSecondsAfterFinished`."""


def json_schema(node: Any) -> Any:
    """A structural schema as draft-07, as far as `PodSettings` needs it: unknown fields are refused, quantities may be numbers."""
    if not isinstance(node, dict):
        return node
    if node.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "number", "string"]}
    out = {key: value for key, value in node.items() if not key.startswith("x-kubernetes")}
    if "properties" in out:
        out["properties"] = {name: json_schema(child) for name, child in out["properties"].items()}
        out["additionalProperties"] = False
    elif isinstance(out.get("additionalProperties"), dict):
        out["additionalProperties"] = json_schema(out["additionalProperties"])
    if "items" in out:
        out["items"] = json_schema(out["items"])
    return out


def text(current: str) -> str:
    """The schema file with the generated definition in its place."""
    schema = json.loads(current)
    pods, beside = json_schema(structural(PodSettings)), json_schema(structural(PlatformDefaults))
    pods["properties"] |= {name: node for name, node in beside["properties"].items() if name not in _ELSEWHERE}
    schema["definitions"]["platformDefaults"] = pods
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def main(argv: list[str] | None = None) -> int:
    path = Path(__file__).resolve().parents[2] / "charts" / "finetune-operator" / "values.schema.json"
    current = path.read_text()
    wanted = text(current)
    if wanted == current:
        return 0
    if "--check" in (sys.argv[1:] if argv is None else argv):
        print(f"out of date: {path.name}; run `make crds`", file=sys.stderr)
        return 1
    path.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
