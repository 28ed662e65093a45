"""The pages are true where a machine can tell: no dead link, no field or chart value that does not exist, no stale reference."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import get_args

import pytest
import yaml
from finetune_api import KIND, combinations_page, docgen
from finetune_api.compute import Strategy
from finetune_api.finetunejob import FineTuneJob
from finetune_api.method import MethodType, Task
from pydantic import ValidationError

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "charts" / "finetune-operator" / "README.md"])
BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)


def identify(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """As GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=identify)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        linked = (page.parent / file).resolve() if file else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("page", PAGES, ids=identify)
def test_manifests_are_valid(page: Path) -> None:
    """Whole manifests as they stand; fragments of a spec laid over a whole one."""
    whole = yaml.safe_load((ROOT / "examples" / "lora-cpu.yaml").read_text())
    for language, text in BLOCK.findall(page.read_text()):
        if language != "yaml":
            continue
        for document in yaml.safe_load_all(re.sub(r"(\d)e-(\d)", r"\1.0e-\2", text)):
            if document.get("kind") == KIND:
                FineTuneJob.model_validate(document)
            elif document.keys() == {"spec"}:
                FineTuneJob.model_validate({**whole, "spec": {**whole["spec"], **document["spec"]}})


@pytest.mark.parametrize("page", PAGES, ids=identify)
def test_chart_values_exist(page: Path) -> None:
    values = yaml.safe_load((ROOT / "charts" / "finetune-operator" / "values.yaml").read_text())
    for setting in re.findall(r"--set(?:-json|-string)? [\"']?([\w.,=/\-:@{}]+)", page.read_text()):
        for key in (part.partition("=")[0] for part in setting.split(",") if "=" in part):
            node = values
            for name in key.split("."):
                assert name in node, f"{key} is no value of the chart"
                node = node[name]
                if node == {}:
                    break


@pytest.mark.parametrize("page", sorted(docgen.PAGES))
def test_the_reference_is_that_of_the_models(page: str) -> None:
    assert (ROOT / "docs" / page).read_text() == docgen.PAGES[page](), "run `make crds`"


def test_a_cell_of_the_table_works_exactly_where_a_job_with_it_is_accepted() -> None:
    text = (ROOT / "examples" / "lora-cpu.yaml").read_text()
    works = {}
    for task, method, strategy in itertools.product(*map(get_args, (Task, MethodType, Strategy))):
        job = yaml.safe_load(text)
        job["spec"]["model"]["task"] = task
        job["spec"]["method"] = {"type": method}
        job["spec"]["compute"] = {"device": "cpu", "strategy": strategy}
        try:
            FineTuneJob.model_validate(job)
            works[task, method, strategy] = True
        except ValidationError:
            works[task, method, strategy] = False
    assert works == {cell: not combinations_page.cell(*cell) for cell in works}
    assert {True, False} == set(works.values())
