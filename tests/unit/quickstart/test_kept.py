"""What was made in one claim is lent to the next, and nothing that is there is replaced."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.quickstart import kept


def made(claim: Path, text: str) -> Path:
    for part in kept.PARTS:
        (claim / part).mkdir(parents=True)
        (claim / part / "manifest.json").write_text(text)
        (claim / part / "content").write_text(text)
    return claim


def contents(claim: Path) -> list[str]:
    return [(claim / part / "content").read_text() for part in kept.PARTS]


def test_it_is_lent_until_another_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "KEPT", tmp_path / "kept")
    new = tmp_path / "new"
    new.mkdir()
    kept.lend(new)
    assert list(new.iterdir()) == []

    kept.keep(made(tmp_path / "first", "first"))
    kept.lend(new)
    assert contents(new) == ["first", "first"]
    second = made(tmp_path / "second", "second")
    kept.lend(second)
    assert contents(second) == ["second", "second"]
    kept.keep(second)
    assert contents(kept.KEPT) == ["second", "second"]
    assert sorted(path.name for path in kept.KEPT.iterdir()) == sorted(kept.PARTS)

    (kept.KEPT / "data" / "content").write_text("kept as it is")
    kept.keep(second)
    assert contents(kept.KEPT) == ["second", "kept as it is"]
