"""Every example is a valid job, also by the words of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetune_api import KIND
from finetune_cli import manifest

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = sorted(path for path in (ROOT / "examples").rglob("*.yaml") if f"kind: {KIND}" in path.read_text())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_example(path: Path) -> None:
    manifest.refuse_file_locations(manifest.read(str(path)))
