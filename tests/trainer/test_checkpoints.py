"""Checkpoints as folders: which are kept, which is best, and what a full disk leaves."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
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
from finetune_trainer.train.checkpoint import Checkpoint, CheckpointReader, CheckpointStore, write_part
from finetune_trainer.train.engines.engine import Fragment
from finetune_trainer.train.fence import Fence
from finetune_trainer.train.gang import Gang
from safetensors.torch import load_file


def store(root: Path, *, attempt: int = 1, keep: int = 2, config: str = "c") -> CheckpointStore:
    return CheckpointStore(root / "checkpoints", Fence.take(root / "fence.json", attempt, []), config, keep=keep)


def seal(to: CheckpointStore, step: int, eval_loss: float | None = None, *, numbers: int = 4) -> Checkpoint:
    values = memoryview(torch.full((numbers,), float(step)).numpy())
    target = to.begin(step)
    write_part(target, 0, [(kind, "layer.weight", (numbers,), 0, values) for kind in ("weights", "exp_avg")])
    return to.seal(target, {"step": step}, {"step": step, "eval_loss": eval_loss, "world_size": 1})


def whole(one: CheckpointStore, gang: Gang, said: list[str]) -> Checkpoint | None:
    return saving.whole(gang, CheckpointStore.newest, one, set(), say=said.append)


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
def test_newest_and_best_are_kept(
    tmp_path: Path, alone: Gang, losses: list[float | None], kept: list[int], best: int
) -> None:
    one = store(tmp_path)
    for step, loss in enumerate(losses, start=1):
        seal(one, step, loss)
    assert [checkpoint.step for checkpoint in one.sealed()] == kept
    assert one.best().step == best
    assert whole(one, alone, []).step == len(losses)
    read = CheckpointReader(tmp_path / "checkpoints" / f"step-{best}")
    assert dict(read.weights())["layer.weight"].tolist() == [best] * 4
    assert read("exp_avg", "layer.weight").tolist() == [best] * 4


def test_only_what_was_sealed_for_this_training_counts(tmp_path: Path) -> None:
    one = store(tmp_path)
    seal(one, 1)
    (tmp_path / "checkpoints" / "step-9").mkdir()
    (tmp_path / "checkpoints" / ".step-8.0123").mkdir()
    assert store(tmp_path, config="other").sealed() == []
    later = store(tmp_path, attempt=2)
    assert later.sealed() == [], "the fence was taken without accepting it"
    assert not (tmp_path / "checkpoints" / ".step-8.0123").exists()
    with pytest.raises(PeerLost):
        seal(one, 2)
    assert not (tmp_path / "checkpoints" / "step-2").exists()


def test_damage_of_any_file_is_seen(tmp_path: Path, alone: Gang) -> None:
    one = store(tmp_path, keep=5)
    for step in (1, 2, 3, 4):
        seal(one, step)
    folder = tmp_path / "checkpoints"
    (folder / "step-4" / "state.json").unlink()
    os.truncate(next((folder / "step-3").glob("rank-*")), 10)
    (folder / "step-2" / "manifest.json").write_text("{")
    said: list[str] = []
    assert whole(one, alone, said).step == 1
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
    one = CheckpointStore(one.folder, one.fence, "c", keep=2)
    assert [path.name for path in (small_volume / "checkpoints").iterdir()] == ["step-1"]
    assert seal(one, 3, numbers=20_000).step == 3


@pytest.mark.parametrize("seed", range(6))
def test_a_flipped_bit_or_a_lost_end_of_any_file_is_seen(tmp_path: Path, alone: Gang, seed: int) -> None:
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
    chosen = whole(one, alone, said)
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

    def export(self) -> Iterator[Fragment]:
        for name, weight in self.weights.items():
            for kind in ("weights", "ema", "exp_avg"):
                values = weight.half() if kind == "exp_avg" else weight
                yield Fragment(kind, name, tuple(weight.shape), 0, values.flatten())

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
    expected = {(one.kind, one.name): one.values.float().clone() for one in engine.export()}
    saver = saving.Saver(alone, engine, store(tmp_path))  # type: ignore[arg-type]
    assert save(saver, 1) == []
    engine.step()
    (checkpoint,) = saver.settle(wait=True)
    assert saver.settle(wait=True) == []
    sealed.verify(checkpoint.folder)
    read = CheckpointReader(checkpoint.folder)
    assert all(torch.equal(read(*key), expected[key]) for key in expected)
    assert {path.name for path in checkpoint.folder.iterdir()} == {
        "rank-00000-00001.safetensors",
        "index.json",
        "state.json",
        "manifest.json",
    }
    written = load_file(checkpoint.folder / "rank-00000-00001.safetensors")
    assert torch.equal(written["ema/a"], expected["ema", "a"]), "it is a file that others can read"
    weights = read.weights()
    assert {name: weights[name].shape for name in weights} == {name: w.shape for name, w in engine.weights.items()}
    assert torch.equal(weights["a"], expected["ema", "a"]), "what is published is the average"


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
    assert isinstance(saver._writing, saving._Process)
    saver._writing.process.send_signal(signal.SIGKILL)
    with pytest.raises(StageError, match="ended with status -9"):
        saver.settle(wait=True)
    assert store(tmp_path).newest().step == 1  # type: ignore[union-attr]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-1"]


def test_format_1_is_still_read(tmp_path: Path, alone: Gang) -> None:
    """Of a checkpoint that the last version before format 2 wrote."""
    shutil.copytree(Path(__file__).parent / "format_1", tmp_path / "checkpoints")
    one = store(tmp_path)
    found = whole(one, alone, [])
    assert found is not None
    assert (found.step, found.value, found.state()) == (3, 0.5, {"step": 3})
    read = CheckpointReader(found.folder)
    assert read("exp_avg", "layer.weight").tolist() == [200.0 + i for i in range(12)]
    assert read("exp_avg_sq", "head.weight", 3, 2).tolist() == [303.0, 304.0]
    assert {name: tensor.shape for name, tensor in read.weights().items()} == {
        "layer.weight": (3, 4),
        "head.weight": (5, 2),
    }
    assert read.weights()["layer.weight"][1].tolist() == [104.0, 105.0, 106.0, 107.0]


def test_writer_needs_no_torch() -> None:
    code = "import sys, finetune_trainer.train.writer; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": os.pathsep.join(sys.path)}).returncode == 0


def part(rank: int, ranks: int, *, length: int = 1000) -> list[tuple[str, str, tuple[int, ...], int, memoryview]]:
    """Every so many-th range of two tensors."""
    low, high = (length * edge // ranks for edge in (rank, rank + 1))
    values = torch.arange(length, dtype=torch.float32)
    return [
        ("weights", name, (length // 10, 10), low, memoryview((values[low:high] + i).numpy()))
        for i, name in enumerate("ab")
    ]


@pytest.mark.parametrize("written", [1, 2, 3])
@pytest.mark.parametrize("read", [1, 2, 3, 5])
def test_ranks_write_and_read_their_share_alone(tmp_path: Path, written: int, read: int) -> None:
    one = store(tmp_path)
    target = one.begin(1)
    for rank in range(written):
        write_part(target, rank, part(rank, written))
    manifest = {"step": 1, "eval_loss": None, "world_size": written}
    folder = one.seal(target, {}, manifest).folder
    sizes = [path.stat().st_size for path in sorted(folder.glob("rank-*"))]
    assert len(sizes) == written
    assert max(sizes) <= 8 * 1000 / written + 300
    for rank in range(read):
        reader = CheckpointReader(folder)
        for kind, name, _, start, values in part(rank, read):
            found = reader(kind, name, start, len(values))
            assert found.tolist() == values.tolist()
        assert reader.bytes_read <= 8 * (1000 / read + 1)


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_ranks_verify_every_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int) -> None:
    one = store(tmp_path)
    target = one.begin(1)
    for rank in range(4):
        write_part(target, rank, part(rank, 4))
    folder = one.seal(target, {}, {"step": 1, "eval_loss": None, "world_size": 4}).folder
    hashed: list[str] = []
    digest = sealed.sha256
    monkeypatch.setattr(sealed, "sha256", lambda path: hashed.append(path.name) or digest(path))
    counts = []
    for rank in range(ranks):
        before = len(hashed)
        sealed.verify(folder, rank=rank, ranks=ranks)
        counts.append(len(hashed) - before)
    assert sorted(hashed) == sorted(path.name for path in folder.iterdir() if path.name != sealed.MANIFEST)
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("lost", ["a part", "a range", "nothing"])
def test_only_what_all_ranks_wrote_is_sealed(tmp_path: Path, lost: str) -> None:
    one = store(tmp_path)
    seal(one, 1)
    target = one.begin(2)
    write_part(target, 0, part(0, 2))
    if lost != "a part":
        write_part(target, 1, part(1, 2)[: 1 if lost == "a range" else None])
    expected = 2
    if lost != "nothing":
        expected = 1
        with pytest.raises((OSError, StageError)):
            one.seal(target, {}, {"step": 2, "eval_loss": None, "world_size": 2})
    else:
        one.seal(target, {}, {"step": 2, "eval_loss": None, "world_size": 2})
    newest = store(tmp_path).newest()
    assert newest is not None
    assert newest.step == expected
    assert {path.name for path in one.folder.iterdir()} <= {"step-1", "step-2"}, (
        "what is left is removed at the next start"
    )


def test_a_rank_of_an_older_attempt_writes_nothing_into_a_newer_one(tmp_path: Path) -> None:
    target = store(tmp_path).begin(1)
    newer = store(tmp_path, attempt=2).begin(1)
    with pytest.raises(PeerLost, match="attempt 2 of this run has taken over"):
        write_part(target, 1, part(1, 2))
    assert list(newer.folder.iterdir()) == []


def test_a_rank_that_is_superseded_while_it_writes_is_told_so(tmp_path: Path) -> None:
    target = store(tmp_path).begin(1)

    def fragments() -> Iterator[tuple[str, str, tuple[int, ...], int, memoryview]]:
        yield part(0, 1)[0]
        store(tmp_path, attempt=2)

    with pytest.raises(PeerLost, match="attempt 2"):
        write_part(target, 0, fragments())
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_an_end_seals_what_all_ranks_have_written(tmp_path: Path, alone: Gang) -> None:
    saver = saving.Saver(alone, Engine(), store(tmp_path))  # type: ignore[arg-type]
    save(saver, 1)
    saver.finish()
    assert [one.step for one in store(tmp_path).sealed()] == [1]
