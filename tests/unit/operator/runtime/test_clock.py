"""The API server's clock, by the Date headers of its answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from email.utils import formatdate

import pytest
from finetune_operator.runtime.clock import ServerClock

HOUR, DAY = 3600.0, 86400.0


@dataclass
class World:
    """`server` and `monotonic` advance together; each may be set."""

    server: float = 1_800_000_000.25
    monotonic: float = 5.0
    wall: float = 42.0
    clock: ServerClock = field(init=False)

    def __post_init__(self) -> None:
        self.clock = ServerClock(lambda: self.monotonic, lambda: self.wall)

    def answer(self, after: float = 0.0, late: float = 0.0) -> None:
        """An answer that is sent `after` so many seconds and arrives `late`."""
        self._pass(after)
        header = formatdate(self.server, usegmt=True)
        self._pass(late)
        self.clock.observe(header)

    def _pass(self, seconds: float) -> None:
        self.server += seconds
        self.monotonic += seconds

    @property
    def error(self) -> float:
        return self.clock.now() - self.server


@pytest.fixture
def world() -> World:
    world = World()
    world.answer()
    return world


def test_wall_clock_counts_until_the_first_answer_only() -> None:
    world = World()
    assert world.clock.now() == 42.0
    world.answer()
    world.wall += DAY
    assert -1 <= world.error <= 0


def test_answers_of_other_moments_of_a_second_make_it_exact(world: World) -> None:
    for _ in range(20):
        world.answer(after=0.93)
    assert -0.1 <= world.error <= 0


@pytest.mark.parametrize("jump", [HOUR, -HOUR, DAY, -DAY, 5.0, -5.0])
def test_a_server_clock_that_was_set_counts_after_a_minute_of_answers(world: World, jump: float) -> None:
    world.server += jump
    for _ in range(6):
        world.answer(after=10)
    assert world.error == pytest.approx(-jump, abs=1), "for less than a minute of answers nothing changes"
    world.answer(after=11)
    assert world.error == pytest.approx(0, abs=1)


def test_a_few_answers_far_apart_are_not_enough(world: World) -> None:
    world.server += HOUR
    world.answer()
    world.answer(after=300)
    assert world.error == pytest.approx(-HOUR, abs=1)
    world.answer(after=300)
    assert world.error == pytest.approx(0, abs=1)


def test_api_servers_that_disagree_do_not_move_it(world: World) -> None:
    for _ in range(20):
        world.server += HOUR
        world.answer(after=10)
        world.server -= HOUR
        world.answer(after=10)
    assert world.error == pytest.approx(0, abs=1)
    for jump in (HOUR, DAY) * 20:  # two that disagree with it and with each other
        world.server += jump
        world.answer(after=10)
        world.server -= jump
    assert world.error == pytest.approx(0, abs=1)


def test_answers_that_are_read_late_do_not_move_it(world: World) -> None:
    for late in (1.5, 20.0, 0.0) * 10:
        world.answer(after=5, late=late)
    assert -1 <= world.error <= 0


def test_a_monotonic_clock_that_drifts_is_followed(world: World) -> None:
    for _ in range(2000):
        world.answer(after=30)
        world.server -= 0.01
    assert abs(world.error) <= 4
    for _ in range(2000):
        world.answer(after=30)
        world.server += 0.01
    assert abs(world.error) <= 1.5


@pytest.mark.parametrize("header", [None, "", "yesterday", "Thu, 99 Foo 2026 00:00:00 GMT"])
def test_headers_that_cannot_be_read_are_ignored(world: World, header: str | None) -> None:
    before = world.clock.now()
    world.clock.observe(header)
    assert world.clock.now() == before
