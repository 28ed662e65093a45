"""What holds for all of them."""

from __future__ import annotations

import gc

import pytest

# Modules, schemas and tests are half a million objects that all live to the end: the collector need not walk them for every
# 700 new ones.
gc.set_threshold(50_000)


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here loses power, and a busy disk makes every fsync slow."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
