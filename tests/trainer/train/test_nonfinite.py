"""Where the first number that is none appeared."""

from __future__ import annotations

import torch
from finetune_trainer.train.nonfinite import broken_weights, searching
from torch import nn


class Block(nn.Module):
    """Two layers with something between them that belongs to neither."""

    def __init__(self, *, root: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.root = root

    def forward(self, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.first(hidden)
        if self.root:
            hidden = (hidden - hidden.detach()).abs().sqrt()  # 0, with an infinite gradient
        return self.second(hidden + attention_mask.clamp(min=-1.0))


class Model(nn.Module):
    def __init__(self, **how: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Block(), Block(**how)])
        self.head = nn.Linear(4, 2)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        mask = torch.full((4,), -torch.inf)  # as attention masks are
        for block in self.blocks:
            hidden = block(hidden, attention_mask=mask)
        return self.head(hidden)


def rows() -> torch.Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def test_a_good_step_has_nothing_to_find() -> None:
    model = Model()
    with searching(model) as search:
        model(rows()).sum().backward()
    assert search.found is None
    assert not any(part._forward_hooks for part in model.modules())


def test_broken_weights_are_told_from_a_broken_output() -> None:
    model = Model()
    model.blocks[1].first.weight.data[0, 0] = torch.nan
    with searching(model) as search:
        search.turn = 2
        model(rows()).sum().backward()
    assert search.found is search.forward
    assert (search.found.where, search.found.turn) == ("blocks.1.first", 2)
    assert "weights themselves" in search.found.said
    assert broken_weights(model) == "blocks.1.first.weight"


def test_the_row_and_the_first_layer_of_an_overflow_are_named() -> None:
    model = Model()
    bad = rows()
    bad[2] = 3.4e38
    model.blocks[0].first.weight.data.fill_(1.0)
    with searching(model) as search:
        model(bad).sum().backward()
    assert search.found is not None
    assert (search.found.where, search.found.shape) == ("blocks.0.first", (3, 4))
    assert {row for row, _ in search.found.places} == {2}
    assert "first bad output" in search.found.said
    assert broken_weights(model) is None


def test_a_gradient_is_blamed_when_every_output_is_finite() -> None:
    model = Model(root=True)
    with searching(model) as search:
        loss = model(rows()).sum()
        assert torch.isfinite(loss)
        loss.backward()
    assert search.forward is None
    assert search.found is not None
    assert search.found.where == "blocks.1.first"
    assert "first bad gradient" in search.found.said
