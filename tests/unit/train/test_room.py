"""Memory that is left."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from finetune_trainer.train.engines import room


def test_no_more_is_free_than_there_is() -> None:
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < room.host_bytes() < total
    assert room.fits_on_host(1 << 20)
    assert not room.fits_on_host(total)
    assert room.fits_everywhere(1 << 20, torch.device("cpu"))
    assert not room.fits_everywhere(total, torch.device("cpu"))


def test_what_pytorch_keeps_for_later_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [60]
    monkeypatch.setattr("torch.cuda.empty_cache", kept.clear)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (100 - sum(kept), 100))
    tensor = torch.tensor
    monkeypatch.setattr("torch.tensor", lambda value, device: tensor(value))  # there is no GPU
    assert room.fits_everywhere(70, torch.device("cuda"))
    assert not room.fits_everywhere(90, torch.device("cuda"))
