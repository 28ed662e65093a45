"""helm, and the chart as it renders."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "charts" / "finetune-operator"


@pytest.fixture(scope="session")
def helm() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run helm. It is fetched once with `python -m localcluster tools`; one on the PATH does as well."""
    fetched = subprocess.run(
        [sys.executable, "-m", "localcluster", "tools"], capture_output=True, text=True, cwd=ROOT, timeout=240
    )
    program = f"{fetched.stdout.strip()}/helm" if fetched.returncode == 0 else shutil.which("helm")
    if program is None:
        pytest.fail(f"no helm: `python -m localcluster tools` fetches it, but failed here: {fetched.stderr}")

    def run(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        result = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60)
        assert not check or result.returncode == 0, result.stderr
        return result

    return run


Render = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="session")
def render(helm: Callable[..., subprocess.CompletedProcess[str]]) -> Render:
    """The chart's objects with these values (`a.b=c`, as for --set)."""

    @functools.cache
    def run(*values: str, release: str = "ft") -> list[dict[str, Any]]:
        settings = [part for value in values for part in ("--set-json", value)]
        text = helm("template", release, str(CHART), "--namespace", "finetune-system", *settings).stdout
        return [document for document in yaml.load_all(text, yaml.CSafeLoader) if document]

    return run
