"""Optimizers by name: their groups and rates, and that a checkpoint of their states goes on as if nothing had happened."""

from __future__ import annotations

import importlib.util

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from finetune_trainer.train.engines.ddp import DdpEngine
from finetune_trainer.train.engines.engine import Setting
from finetune_trainer.train.optimizers.choose import recipe_of
from finetune_trainer.train.optimizers.groups import groups, set_learning_rate
from finetune_trainer.train.optimizers.muon import Muon
from torch import nn

from tests.trainer import engine_cells

OURS = ["adamw", "adafactor", "muon"]
BITSANDBYTES = ["adamw-8bit", "paged-adamw", "paged-adamw-8bit"]


class Net(nn.Module):
    """An embedding, a hidden matrix large enough for 8-bit states, a norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(50, 64)
        self.hidden = nn.Linear(64, 128)
        self.norm = nn.LayerNorm(128)
        self.score = nn.Linear(128, 50, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.score(self.norm(torch.tanh(self.hidden(self.embed(ids)))))


class Loss:
    """A batch that is its own loss."""

    def __init__(self, step: int) -> None:
        self.ids = torch.randint(0, 50, (16,), generator=torch.Generator().manual_seed(step))

    def to(self, device: torch.device) -> Loss:
        return self


def engine(optimizer: str) -> DdpEngine:
    net = Net()
    setting = Setting(rank=0, world_size=1, device=torch.device("cpu"), bf16=False, max_grad_norm=1.0, ema=0.8)
    return DdpEngine(setting, net, recipe_of(optimizer, net), groups(net.named_parameters(), weight_decay=0.1))


def train(one: DdpEngine, steps: range) -> list[float]:
    losses = []
    for step in steps:
        loss = one.accumulate([lambda step=step: Loss(step)], lambda m, b: F.cross_entropy(m(b.ids), b.ids), 1.0)
        one.step(0.01)
        losses.append(float(loss))
    return losses


@pytest.mark.parametrize("optimizer", OURS)
def test_it_learns_and_goes_on_from_its_states(optimizer: str) -> None:
    one = engine(optimizer)
    losses = train(one, range(12))
    assert losses[-1] < losses[0] - 0.5
    kept = engine_cells.exported(one, share=False)
    rest = train(one, range(12, 18))
    other = engine(optimizer)
    train(other, range(3))
    engine_cells.restore(other, kept, 12)
    assert train(other, range(12, 18)) == rest


@pytest.mark.parametrize("optimizer", OURS)
def test_states_can_be_exported_before_the_first_step(optimizer: str) -> None:
    kept = engine_cells.exported(engine(optimizer), share=False)
    other = engine(optimizer)
    engine_cells.restore(other, kept, 0)
    assert train(other, range(3)) == train(engine(optimizer), range(3))


@pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="bitsandbytes is not installed")
@pytest.mark.parametrize("optimizer", BITSANDBYTES)
def test_bitsandbytes_goes_on_nearly_as_it_was(optimizer: str) -> None:
    """Its CPU kernels are the same arithmetic as CUDA's. 8-bit moments are rounded once more when they come back."""
    one = engine(optimizer)
    losses = train(one, range(12))
    assert losses[-1] < losses[0] - 0.5
    kept = engine_cells.exported(one, share=False)
    rest = train(one, range(12, 18))
    other = engine(optimizer)
    engine_cells.restore(other, kept, 12)
    for key, tensor in engine_cells.exported(other, share=False).items():
        assert (tensor - kept[key]).abs().max() <= 0.015 * kept[key].abs().max(), key
    assert train(other, range(12, 18)) == pytest.approx(rest, abs=0.02 if "8bit" in optimizer else 0.0)


def test_biases_and_norms_are_not_decayed_and_b_learns_faster() -> None:
    names = [
        "q.lora_A.default.weight",
        "q.lora_B.default.weight",
        "e.lora_embedding_B.default",
        "norm.weight",
        "q.bias",
    ]
    shapes = [(2, 3), (3, 2), (3, 2), (3,), (3,)]
    named = [(name, nn.Parameter(torch.zeros(shape))) for name, shape in zip(names, shapes, strict=True)]
    made = groups(named, weight_decay=0.1, plus_ratio=16.0)
    found = {id(p): (group["weight_decay"], group["ratio"]) for group in made for p in group["params"]}
    assert [found[id(p)] for _, p in named] == [(0.1, 1.0), (0.1, 16.0), (0.1, 16.0), (0.0, 1.0), (0.0, 1.0)]
    optimizer = torch.optim.AdamW(made, lr=0.0)
    set_learning_rate(optimizer, 0.001)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([0.001, 0.016])


def test_muon_takes_hidden_matrices_alone() -> None:
    net = Net()
    kind = Muon(net)
    hidden = [name for name, p in net.named_parameters() if kind.is_hidden(p)]
    assert hidden == ["hidden.weight"]
    assert kind.shapes(net.hidden.weight) == {"momentum_buffer": (128, 64)}
    assert kind.shapes(net.embed.weight) == {"exp_avg": (50, 64), "exp_avg_sq": (50, 64)}


def test_adafactor_is_transformers_own() -> None:
    from transformers.optimization import Adafactor

    one, net = engine("adafactor"), Net()
    theirs = Adafactor(
        groups(net.named_parameters(), weight_decay=0.1), lr=0.01, scale_parameter=False, relative_step=False
    )
    for step in range(4):
        loss = F.cross_entropy(net(Loss(step).ids), Loss(step).ids)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        theirs.step()
        theirs.zero_grad()
    train(one, range(4))
    for mine, other in zip(one.module.parameters(), net.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_moving_average_is_what_its_formula_says() -> None:
    one = engine("adamw")
    expected = one.module.hidden.weight.detach().clone()
    for step in range(5):
        train(one, range(step, step + 1))
        expected = 0.8 * expected + 0.2 * one.module.hidden.weight.detach()
    last = one.module.hidden.weight.detach().clone()
    with one.averaged():
        torch.testing.assert_close(one.module.hidden.weight.detach(), expected)
    assert torch.equal(one.module.hidden.weight.detach(), last)
