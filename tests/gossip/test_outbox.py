"""What leaves at once, what leaves from a task, and that it leaves once and in order (a fake link, virtual time)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from gossip.collective.links.outbox import Outbox, Transfer
from gossip.errors import NotFinite


class FakeLink:
    """Takes a transfer at once or not, and sometimes lets it wait, as `rng` has it."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng
        self.sent: list[bytes] = []
        self.waiting = False
        self._sending = False

    def _chance(self, share: float) -> bool:
        return self._rng is not None and self._rng.random() < share

    @property
    def busy(self) -> bool:
        return self._sending or self.waiting or self._chance(0.2)

    def try_send(self, head: bytes, _payload: bytes) -> bool:
        if self._sending or self.waiting or self._chance(0.2):
            return False
        self.sent.append(head)
        self.waiting = self._chance(0.3)
        return True

    async def flush(self) -> None:
        await self._in_turn(lambda: setattr(self, "waiting", False))

    async def send(self, head: bytes, _payload: bytes) -> None:
        assert not self.waiting, "flush comes first"
        await self._in_turn(lambda: self.sent.append(head))

    async def _in_turn(self, work: Callable[[], None]) -> None:
        assert not self._sending, "two tasks send on one link"
        self._sending = True
        work()
        while self._chance(0.5):
            await trio.lowlevel.checkpoint()
        self._sending = False


def transfers(*heads: bytes) -> Iterator[Transfer]:
    return iter([(head, b"") for head in heads])


def run(main: Callable[[trio.testing.MockClock], object]) -> None:
    clock = trio.testing.MockClock()
    trio.run(main, clock, clock=clock)  # type: ignore[arg-type]


@given(seed=st.integers(0, 2**32))
def test_everything_leaves_once_and_in_order(seed: int) -> None:
    rng = random.Random(seed)
    link, posted = FakeLink(rng), []

    async def main(clock: trio.testing.MockClock) -> None:
        def slow(heads: list[bytes]) -> Iterator[Transfer]:
            for head in heads:
                clock.jump(rng.choice([0.0, 0.0006, 0.002]))
                yield head, b""

        async with trio.open_nursery() as nursery:
            outbox = Outbox(link, nursery)  # type: ignore[arg-type]
            for post in range(rng.randrange(1, 12)):
                heads = [b"%d.%d" % (post, part) for part in range(rng.randrange(6))]
                posted.extend(heads)
                outbox.post(slow(heads))
                for _ in range(rng.randrange(3)):
                    await trio.lowlevel.checkpoint()

    run(main)
    assert link.sent == posted
    assert not link.waiting


def test_what_takes_no_time_leaves_before_post_returns() -> None:
    link = FakeLink()

    async def main(_clock: trio.testing.MockClock) -> None:
        async with trio.open_nursery() as nursery:
            Outbox(link, nursery).post(transfers(b"a", b"b", b"c"))  # type: ignore[arg-type]
            assert link.sent == [b"a", b"b", b"c"]
            assert not nursery.child_tasks

    run(main)


def test_what_takes_long_leaves_from_the_task_after_a_millisecond() -> None:
    link, made = FakeLink(), []

    async def main(clock: trio.testing.MockClock) -> None:
        def encoded() -> Iterator[Transfer]:
            for number in range(20):
                clock.jump(0.0004)
                made.append(number)
                yield b"%d" % number, b""

        async with trio.open_nursery() as nursery:
            Outbox(link, nursery).post(encoded())  # type: ignore[arg-type]
            assert len(link.sent) == len(made) == 3
            assert len(nursery.child_tasks) == 1

    run(main)
    assert link.sent == [b"%d" % number for number in range(20)]


def test_nothing_is_made_while_the_link_is_busy() -> None:
    link, made = FakeLink(), []

    async def main(_clock: trio.testing.MockClock) -> None:
        def encoded() -> Iterator[Transfer]:
            made.append(1)
            yield b"later", b""

        async with trio.open_nursery() as nursery:
            link.waiting = True
            Outbox(link, nursery).post(encoded())  # type: ignore[arg-type]
            assert not made

    run(main)
    assert link.sent == [b"later"]


@pytest.mark.parametrize("seconds", [0.0, 0.002])
def test_what_cannot_be_encoded_ends_the_operation(seconds: float) -> None:
    """From `post` while it runs, from the task after that."""
    link = FakeLink()

    async def main(clock: trio.testing.MockClock) -> None:
        def encoded() -> Iterator[Transfer]:
            yield b"a", b""
            clock.jump(seconds)
            yield b"b", b""
            raise NotFinite("no")

        async with trio.open_nursery() as nursery:
            Outbox(link, nursery).post(encoded())  # type: ignore[arg-type]

    with pytest.raises((NotFinite, ExceptionGroup)) as raised:
        run(main)
    inner = raised.value
    while isinstance(inner, ExceptionGroup):
        (inner,) = inner.exceptions
    assert isinstance(inner, NotFinite)
    assert link.sent == [b"a", b"b"]
