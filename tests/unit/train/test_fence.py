"""Which attempt may seal, and which older checkpoints count."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from finetune_trainer.errors import PeerLost
from finetune_trainer.train.fence import Fence, refuse_superseded


def test_attempts_take_over_one_from_another(tmp_path: Path) -> None:
    path = tmp_path / "run" / "fence.json"
    first = Fence.take(path, 1, [])
    assert first.counts("step-4", 1)
    again = Fence.take(path, 1, [("step-4", 1)])
    assert again.counts("step-4", 1)

    second = Fence.take(path, 2, [("step-4", 1)])
    assert second.counts("step-4", 1)
    assert second.counts("step-8", 2)
    assert not second.counts("step-8", 1), "sealed by the first attempt after it had been superseded"

    with pytest.raises(PeerLost, match="attempt 2 of this run has taken over") as late:
        first.check()
    assert late.value.exit_code == 7
    for refused in (lambda: Fence.take(path, 1, []), lambda: refuse_superseded(path, 1)):
        with pytest.raises(PeerLost):
            refused()
    second.check()
    refuse_superseded(path, 2)

    third = Fence.take(path, 3, [("step-4", 1), ("step-8", 1), ("step-12", 2)])
    assert [third.counts(*one) for one in (("step-4", 1), ("step-8", 1), ("step-12", 2))] == [True, False, True]
    assert json.loads(path.read_text()) == {"attempt": 3, "accepted": ["step-12", "step-4"]}


def test_checkpoints_that_no_fence_vouches_for_do_not_count(tmp_path: Path) -> None:
    assert not Fence.take(tmp_path / "fence.json", 1, [("step-4", 7)]).counts("step-4", 7)
