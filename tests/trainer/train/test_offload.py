"""What DeepSpeed is told to keep outside the GPU, and what it cannot do here."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from finetune_api.compute import OffloadSpec
from finetune_trainer.errors import BadInput
from finetune_trainer.train.engines.engine import Setting
from finetune_trainer.train.engines.zero import config


def setting(offload: OffloadSpec | None) -> Setting:
    return Setting(rank=0, world_size=2, device=torch.device("cpu"), bf16=False, max_grad_norm=1.0, offload=offload)


def built_with(monkeypatch: pytest.MonkeyPatch, *, async_io: bool) -> None:
    monkeypatch.setitem(
        sys.modules, "deepspeed.git_version_info", SimpleNamespace(installed_ops={"async_io": async_io})
    )


def test_nothing_is_offloaded_unless_asked_for() -> None:
    zero = config(setting(None), stage=3, trainable=10)["zero_optimization"]
    assert not {"offload_optimizer", "offload_param"} & zero.keys()


def test_host() -> None:
    made = config(setting(OffloadSpec(optimizer="cpu", parameters="none")), stage=2, trainable=10)
    assert made["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": False}
    assert "offload_param" not in made["zero_optimization"]
    assert made["zero_force_ds_cpu_optimizer"] is False, "DeepSpeed's own would be compiled at run time"


def test_nvme_needs_an_operation_that_was_built(monkeypatch: pytest.MonkeyPatch) -> None:
    nvme = setting(OffloadSpec(optimizer="nvme", parameters="nvme", nvme_path="/fast"))
    built_with(monkeypatch, async_io=False)
    with pytest.raises(BadInput, match=r"compute.offload: nvme needs .* async_io") as bad:
        config(nvme, stage=3, trainable=10)
    assert bad.value.cause.code == "InvalidSpec"
    built_with(monkeypatch, async_io=True)
    made = config(nvme, stage=3, trainable=10)
    assert made["zero_optimization"]["offload_param"]["nvme_path"] == "/fast"
    assert made["aio"]["block_size"] == 1 << 20
