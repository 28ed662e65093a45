"""Every command, metric, alert, field, condition, reason and code that the documentation names exists in the code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
import yaml
from finetune_api.checks import CHECKS, Fix
from finetune_api.failures import FAILURES
from finetune_api.reasons import Reason
from finetune_api.status import AttemptStatus, Phase
from finetune_cli.app import app
from finetune_operator.telemetry import metrics
from prometheus_client.metrics import MetricWrapperBase

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "charts" / "finetune-operator"
PAGES = sorted(
    [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "operator" / "README.md", CHART / "README.md"]
)
CODE = re.compile(r"```\w*\n(.*?)```|`([^`\n]+)`", re.DOTALL)
CONDITIONS = set(
    re.findall(r'shown\["(\w+)"\]', (ROOT / "operator/finetune_operator/domain/status/conditions.py").read_text())
)
ALERTS = (CHART / "templates" / "prometheusrule.yaml").read_text()
SCHEMA = yaml.safe_load((ROOT / "crds" / "finetunejobs.yaml").read_text())["spec"]["versions"][0]["schema"]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
METRICS = {
    metric._name + ("_total" if metric._type == "counter" else ""): set(metric._labelnames)
    for metric in vars(metrics).values()
    if isinstance(metric, MetricWrapperBase)
}
KNOWN = {
    *CONDITIONS, *Reason, *FAILURES, *CHECKS, *get_args(Phase), *get_args(Fix),
    *get_args(AttemptStatus.model_fields["outcome"].annotation), *re.findall(r"alert: (\w+)", ALERTS),
    "FineTuneJob", "PlanFacts",
    # Kubernetes
    "ReadWriteOnce", "ReadWriteMany", "ReadOnlyMany", "IfNotPresent", "Warning",
    # values of spec
    "Automatic", "Accepted", "Completed",
}  # fmt: skip


def code(page: Path) -> Iterator[str]:
    """Code blocks and spans."""
    for block, span in CODE.findall(page.read_text()):
        yield block or span


def has_field(path: str) -> bool:
    """Whether the CRD has this field, and does not call it deprecated. `*` and upper-case names stand for a key."""
    node: dict[str, Any] = SCHEMA["openAPIV3Schema"]
    for name in re.sub(r"\[[^]]*\]", "", path).split("."):
        node = node.get("items", node)
        if name == "*" or name.isupper():
            node = next(iter(node.get("properties", {}).values()), {})
        elif name in node.get("properties", {}):
            node = node["properties"][name]
        else:
            return "properties" not in node and node.get("type") == "object"
    return not str(node.get("description", "")).startswith("Deprecated")


def unknown_commands(text: str) -> Iterator[str]:
    for verb, rest in re.findall(r"(?m)(?:^|run: |do )(?:\$ )?ftj ([a-z]+)([^\n#|]*)", text):
        if verb not in COMMANDS:
            yield f"ftj {verb}"
            continue
        known = {option for parameter in COMMANDS[verb].params for option in parameter.opts}
        yield from (f"ftj {verb} {flag}" for flag in re.findall(r"(?<=\s)--?[a-z][a-z-]*", rest) if flag not in known)


def unknown_metrics(text: str) -> Iterator[str]:
    prefixes = "finetune_(?!api|operator|cli|trainer)|controller_runtime_|workqueue_|rest_client_|leader_election_"
    for name, labels in re.findall(rf"\b((?:{prefixes})\w+\*?)(?:\{{([\w,]+)\}})?", text):
        found = [known for known in METRICS if known == name or (name.endswith("*") and known.startswith(name[:-1]))]
        if not found or set(filter(None, labels.split(","))) - METRICS[found[0]]:
            yield f"metric {name}"


def unknown(page: Path) -> Iterator[str]:
    for text in code(page):
        yield from unknown_commands(text)
        yield from unknown_metrics(text)
        yield from (f"alert {n}" for n in re.findall(r"\bFinetune[A-Z]\w+", text) if n not in KNOWN)
        fields = re.findall(r"\b((?:spec|status)(?:\.(?:[A-Za-z]\w*|\*)(?:\[[^]]*\])?)+)", text)
        yield from (f"field {path}" for path in fields if not has_field(path))
        if re.fullmatch(r"[A-Z][a-z]+(?:[A-Z][a-z]+)+|[A-Z][a-z]+(?:ed|ing)", text) and text not in KNOWN:
            yield text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_exists(page: Path) -> None:
    assert not list(unknown(page))


@pytest.mark.parametrize("name", sorted(CONDITIONS))
def test_each_condition_is_documented(name: str) -> None:
    assert f"`{name}`" in (ROOT / "docs" / "status.md").read_text()
