"""Checkpoints as folders: which are kept, which is best, and what a full disk leaves."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from finetune_trainer import sealed, termination
from finetune_trainer.errors import PeerLost, StageError
from finetune_trainer.stage import StageContext
from finetune_trainer.train import saving, staging
from finetune_trainer.train.checkpoint import Checkpoint, CheckpointReader, CheckpointStore
from finetune_trainer.train.fence import Fence
from finetune_trainer.train.gang import Gang
from safetensors.torch import load_file


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


@pytest.mark.parametrize("seed", range(6))
def test_a_flipped_bit_or_a_lost_end_of_any_file_is_seen(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    one = store(tmp_path, keep=3)
    seal(one, 1)
    seal(one, 2)
    victim = draw.choice(sorted((tmp_path / "checkpoints" / "step-2").iterdir()))
    content = bytearray(victim.read_bytes())
    if draw.random() < 0.5:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    else:
        del content[draw.randrange(len(content)) :]
    victim.write_bytes(content)
    said: list[str] = []
    chosen = one.whole(one.newest, said.append)
    if victim.name == sealed.MANIFEST and chosen is not None and chosen.step == 2:
        json.loads(content)  # a flipped bit in a word of no weight, such as a time, leaves the tensors what they were
    else:
        assert chosen is not None
        assert chosen.step == 1


class Engine:
    """Exports tensors that the next step changes in place."""

    state_bytes = 1 << 40

    def __init__(self, numbers: int = 1000) -> None:
        self.weights = {name: torch.randn(numbers) for name in ("a", "b.c")}
        self.weights["scalar"] = torch.tensor(3.5)
        self.weights["empty"] = torch.zeros(0, 4)

    def export(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        for name, weight in self.weights.items():
            for kind in ("weights", "ema", "exp_avg"):
                yield kind, name, weight.half() if kind == "exp_avg" else weight

    def step(self) -> None:
        for weight in self.weights.values():
            weight.zero_()


@pytest.fixture
def alone(tmp_path: Path) -> Gang:
    return Gang(StageContext(config=None, progress=None, stop=None, scratch=tmp_path), torch.device("cpu"))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "fits_on_host", lambda size: True)
    monkeypatch.setattr(staging, "_CHUNK_BYTES", 1 << 13)


def save(saver: saving.Saver, step: int, **how: bool) -> list[Checkpoint]:
    return saver.save({"step": step}, {"step": step, "eval_loss": None, "world_size": 1}, **how)


def test_another_process_writes_what_was_there_at_the_step(tmp_path: Path, alone: Gang) -> None:
    engine = Engine()
    expected = {f"{kind}/{name}": tensor.float().clone() for kind, name, tensor in engine.export()}
    saver = saving.Saver(alone, engine, store(tmp_path))  # type: ignore[arg-type]
    assert save(saver, 1) == []
    engine.step()
    (checkpoint,) = saver.settle(wait=True)
    assert saver.settle(wait=True) == []
    sealed.verify(checkpoint.folder)
    written = {key: value for path in checkpoint.folder.glob("*.safetensors") for key, value in load_file(path).items()}
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[key], expected[key]) for key in expected)
    files = {path.name for path in checkpoint.folder.glob("*.safetensors")}
    assert files == {"weights-00001.safetensors", "ema-00001.safetensors", "optimizer-00001.safetensors"}
    read = dict(CheckpointReader(checkpoint.folder).weights())
    assert torch.equal(read["a"], expected["ema/a"]), "what is published is the average"


def test_one_is_in_flight_at_most_and_memory_is_used_again(tmp_path: Path, alone: Gang) -> None:
    saver = saving.Saver(alone, Engine(), store(tmp_path))  # type: ignore[arg-type]
    assert save(saver, 1) == []
    descriptors = list(saver._staging.descriptors)
    assert [one.step for one in save(saver, 2)] == [1]
    assert [one.step for one in save(saver, 3, wait=True)] == [2, 3]
    assert saver._staging.descriptors == descriptors
    assert [one.step for one in store(tmp_path).sealed()] == [2, 3]


def test_small_ones_are_written_at_once(tmp_path: Path, alone: Gang) -> None:
    engine = Engine()
    engine.state_bytes = saving.SMALL_BYTES
    saver = saving.Saver(alone, engine, store(tmp_path))  # type: ignore[arg-type]
    assert [one.step for one in save(saver, 1)] == [1]


def test_what_does_not_fit_into_memory_is_written_piece_by_piece(
    tmp_path: Path, alone: Gang, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "fits_on_host", lambda size: False)
    saver = saving.Saver(alone, Engine(), store(tmp_path))  # type: ignore[arg-type]
    assert [one.step for one in save(saver, 1)] == [1]
    assert saver._staging.capacity == 0


def test_full_disk_is_told_by_the_writer(small_volume: Path, alone: Gang) -> None:
    good = seal(store(small_volume), 1, numbers=20_000)
    saver = saving.Saver(alone, Engine(200_000), store(small_volume))  # type: ignore[arg-type]
    save(saver, 2)
    with pytest.raises(OSError, match="No space") as full:
        saver.settle(wait=True)
    assert termination.classify(full.value)[1].code == "StorageFull"
    sealed.verify(good.folder)
    assert [path.name for path in (small_volume / "checkpoints").iterdir()] == ["step-1"]


def test_writer_of_an_older_attempt_seals_nothing(tmp_path: Path, alone: Gang) -> None:
    saver = saving.Saver(alone, Engine(), store(tmp_path, attempt=1))  # type: ignore[arg-type]
    Fence.take(tmp_path / "fence.json", 2, [])
    save(saver, 1)
    with pytest.raises(StageError, match="attempt 2 of this run has taken over") as late:
        saver.settle(wait=True)
    assert (late.value.cause.code, late.value.exit_code) == ("Superseded", 7)
    assert not (tmp_path / "checkpoints" / "step-1").exists()


def test_killed_writer_is_told_and_leaves_the_last_good_one(tmp_path: Path, alone: Gang) -> None:
    first = store(tmp_path)
    seal(first, 1)
    saver = saving.Saver(alone, Engine(), first)  # type: ignore[arg-type]
    save(saver, 2)
    assert saver._writing is not None
    saver._writing.process.send_signal(signal.SIGKILL)
    with pytest.raises(StageError, match="ended with status -9"):
        saver.settle(wait=True)
    assert store(tmp_path).newest().step == 1  # type: ignore[union-attr]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-1"]


def test_writer_needs_no_torch() -> None:
    code = "import sys, finetune_trainer.train.writer; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": os.pathsep.join(sys.path)}).returncode == 0
