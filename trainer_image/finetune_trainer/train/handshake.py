"""Before the first step, every rank proves that the gang is what it should be. It costs one exchange of small values.

Launchers and libraries can go wrong silently here: each process believing that it is alone, all of them training the same
rows, a strategy that was quietly left out, a replica with other weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune_trainer.errors import StageError

if TYPE_CHECKING:
    import numpy as np

    from finetune_trainer.train.gang import Gang

ENGINES = {
    "ddp": ("DistributedDataParallel", "single process"),
    "zero1": ("DeepSpeedEngine",),
    "zero2": ("DeepSpeedEngine",),
    "zero3": ("DeepSpeedEngine",),
    "fsdp2": ("FSDPModule",),
}
"""What `Engine.name` may be under each strategy."""


@dataclass(frozen=True, slots=True)
class Hello:
    """What one rank says. `rows` are those that it takes in the first step."""

    rank: int
    world_size: int
    engine: str
    config: str
    plan: str
    weights: str
    rows: tuple[int, ...]


def shake(gang: Gang, mine: Hello, *, strategy: str, step_rows: np.ndarray) -> None:
    """Raises StageError, on every rank, that names what differs."""
    check(gang.gather(mine), world_size=gang.world_size, strategy=strategy, step_rows=step_rows.tolist())


def check(hellos: list[Hello], *, world_size: int, strategy: str, step_rows: list[int]) -> None:
    """The verdict over everybody's hello, in order of rank."""
    if [hello.rank for hello in hellos] != list(range(world_size)):
        raise StageError(f"the gang should have {world_size} ranks, but these answered: {[h.rank for h in hellos]}")
    first = hellos[0]
    for hello in hellos:
        if hello.world_size != world_size:
            raise StageError(f"rank {hello.rank} believes in {hello.world_size} ranks instead of {world_size}")
        if hello.engine not in ENGINES[strategy] or (world_size > 1 and hello.engine == "single process"):
            raise StageError(f"rank {hello.rank} runs {hello.engine}, which is not strategy {strategy}")
        for what in ("config", "plan", "weights"):
            if getattr(hello, what) != getattr(first, what):
                raise StageError(
                    f"rank {hello.rank} and rank 0 have different {what}; all pods must see the same files"
                )
    taken = [row for hello in hellos for row in hello.rows]
    if sorted(taken) != sorted(step_rows):
        raise StageError("the ranks' rows of the first step are not, each once, those of the plan")
