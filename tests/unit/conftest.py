"""What holds for all of them."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here loses power, and a busy disk makes every fsync slow."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
