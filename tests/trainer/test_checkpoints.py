"""Checkpoints as folders: which are kept, which is best, and what a full disk leaves."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from finetune_trainer import sealed
from finetune_trainer.errors import PeerLost
from finetune_trainer.train.checkpoint import Checkpoint, CheckpointReader, CheckpointStore
from finetune_trainer.train.fence import Fence


def store(root: Path, *, attempt: int = 1, keep: int = 2, config: str = "c") -> CheckpointStore:
    return CheckpointStore(root / "checkpoints", Fence.take(root / "fence.json", attempt, []), config, keep=keep)


def seal(to: CheckpointStore, step: int, eval_loss: float | None = None, *, numbers: int = 4) -> Checkpoint:
    tensors = [(kind, "layer.weight", torch.full((numbers,), float(step))) for kind in ("weights", "exp_avg")]
    return to.seal(iter(tensors), {"step": step}, {"step": step, "eval_loss": eval_loss, "world_size": 1})


@pytest.mark.parametrize(
    ("losses", "kept", "best"),
    [
        ([None, None, None, None], [3, 4], 4),
        ([0.5, 0.9, 0.8, 0.7], [1, 3, 4], 1),
        ([0.5, 0.4, 0.4, 0.7], [2, 3, 4], 2),
        ([0.5, None, 0.2, None], [3, 4], 3),
        ([0.5, 0.4, 0.3, 0.2], [3, 4], 4),
    ],
)
def test_newest_and_best_are_kept(tmp_path: Path, losses: list[float | None], kept: list[int], best: int) -> None:
    one = store(tmp_path)
    for step, loss in enumerate(losses, start=1):
        seal(one, step, loss)
    assert [checkpoint.step for checkpoint in one.sealed()] == kept
    assert one.best().step == best
    assert one.whole(one.newest, print).step == len(losses)
    read = CheckpointReader(tmp_path / "checkpoints" / f"step-{best}")
    assert dict(read.weights())["layer.weight"].tolist() == [best] * 4
    assert read("exp_avg", "layer.weight").tolist() == [best] * 4


def test_only_what_was_sealed_for_this_training_counts(tmp_path: Path) -> None:
    one = store(tmp_path)
    seal(one, 1)
    (tmp_path / "checkpoints" / "step-9").mkdir()
    (tmp_path / "checkpoints" / ".step-8.staged").mkdir()
    assert store(tmp_path, config="other").sealed() == []
    later = store(tmp_path, attempt=2)
    assert later.sealed() == [], "the fence was taken without accepting it"
    assert not (tmp_path / "checkpoints" / ".step-8.staged").exists()
    with pytest.raises(PeerLost):
        seal(one, 2)
    assert not (tmp_path / "checkpoints" / "step-2").exists()


def test_damage_of_any_file_is_seen(tmp_path: Path) -> None:
    one = store(tmp_path, keep=5)
    for step in (1, 2, 3, 4):
        seal(one, step)
    folder = tmp_path / "checkpoints"
    (folder / "step-4" / "state.json").unlink()
    os.truncate(next((folder / "step-3").glob("optimizer-*")), 10)
    (folder / "step-2" / "manifest.json").write_text("{")
    said: list[str] = []
    assert one.whole(one.newest, said.append).step == 1
    assert len(said) == 2
    assert "state.json is missing" in said[0]
    assert "10 bytes instead of" in said[1]


@pytest.fixture
def small_volume(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mount.returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_leaves_the_last_good_one(small_volume: Path) -> None:
    one = store(small_volume)
    good = seal(one, 1, numbers=20_000)
    with pytest.raises(OSError, match="No space") as full:
        seal(one, 2, numbers=200_000)
    assert full.value.errno == errno.ENOSPC
    sealed.verify(good.folder)
    assert [path.name for path in (small_volume / "checkpoints").iterdir()] == ["step-1"]
    assert seal(one, 3, numbers=20_000).step == 3
