"""What every rank must agree on before the first step."""

from __future__ import annotations

from dataclasses import replace

import pytest
from finetune_trainer.errors import StageError
from finetune_trainer.train.handshake import Hello, check

ZERO, ONE = (
    Hello(
        rank=rank,
        world_size=2,
        engine="DeepSpeedEngine",
        config="c",
        plan="p",
        weights="w",
        rows=(rank * 2, rank * 2 + 1),
    )
    for rank in (0, 1)
)


def verdict(*hellos: Hello, strategy: str = "zero2", world_size: int = 2) -> None:
    check(list(hellos), world_size=world_size, strategy=strategy, step_rows=[3, 1, 0, 2])


def test_a_good_gang_passes() -> None:
    verdict(ZERO, ONE)
    verdict(replace(ZERO, rows=(0, 1, 2, 3)), replace(ONE, rows=()))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"world_size": 1}, "rank 1 believes in 1 ranks"),
        ({"rank": 0}, "should have 2 ranks"),
        ({"engine": "DistributedDataParallel"}, "rank 1 runs DistributedDataParallel, which is not strategy zero2"),
        ({"rows": (0, 1)}, "not, each once, those of the plan"),
        ({"rows": (2,)}, "not, each once, those of the plan"),
        ({"weights": "x"}, "different weights"),
        ({"config": "x"}, "different config"),
        ({"plan": "x"}, "different plan"),
    ],
)
def test_what_differs_is_named(other: dict[str, object], message: str) -> None:
    with pytest.raises(StageError, match=message):
        verdict(ZERO, replace(ONE, **other))  # type: ignore[arg-type]


def test_a_lone_process_in_a_gang_is_refused() -> None:
    alone = [replace(hello, engine="single process") for hello in (ZERO, ONE)]
    with pytest.raises(StageError, match="not strategy ddp"):
        verdict(*alone, strategy="ddp")
