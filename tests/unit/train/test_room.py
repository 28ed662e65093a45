"""Memory that is left."""

from __future__ import annotations

from pathlib import Path

import torch
from finetune_trainer.train.engines import room


def test_no_more_is_free_than_there_is() -> None:
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < room.host_bytes() < total
    assert room.fits_on_host(1 << 20)
    assert not room.fits_on_host(total)
    assert room.fits_everywhere(1 << 20, torch.device("cpu"))
    assert not room.fits_everywhere(total, torch.device("cpu"))
