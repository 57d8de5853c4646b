"""Racing candidates: who wins, what is kept of the losers, and what a late cancellation costs."""

from collections.abc import Sequence

import pytest
import trio

from transport.address import Address
from transport.connect.dialer import CONNECT_TIMEOUT_S, MAX_CANDIDATES, STAGGER_S, Commit, dial
from transport.errors import ConnectFailed, HandshakeFailed, PeerUnreachable
from transport.network import Network, RawListener, RawStream
from transport.simulated.memory import MemoryNetwork


class ScriptedNetwork(Network):
    """Answers per host: a delay and then success or a reason."""

    def __init__(self, script: dict[str, tuple[float, str]]) -> None:
        self.script = script
        self.world = MemoryNetwork(1)
        self.tried: list[tuple[float, str]] = []

    async def connect(self, address: Address, *, source: Address | None = None) -> RawStream:
        self.tried.append((trio.current_time(), address.host))
        delay_s, reason = self.script[address.host]
        await trio.sleep(delay_s)
        if reason:
            raise ConnectFailed(reason)
        listener = await self.world.host(address.host).listen(Address(address.host, 0))
        raw = await self.world.host("10.0.0.100").connect(listener.address)
        await listener.aclose()
        return raw

    async def listen(self, address: Address) -> RawListener:
        raise NotImplementedError

    async def resolve(self, address: Address) -> Sequence[Address]:
        if address.host == "unknown":
            raise ConnectFailed("name or service not known", hint="check the spelling")
        if address.host == "many":
            return [Address("10.0.0.1", address.port), Address("10.0.0.2", address.port)]
        return [address]


def at(*hosts: str) -> list[Address]:
    return [Address(host, 1) for host in hosts]


async def take_host(raw: RawStream, address: Address, commit: Commit) -> str:
    assert commit()
    raw.abort()
    return address.host


def nothing(_result: object) -> None:
    pass


async def test_the_first_that_answers_wins_and_hanging_ones_do_not_delay(
    autojump_clock: object,
) -> None:
    network = ScriptedNetwork({"10.0.0.1": (99, ""), "10.0.0.2": (0.1, ""), "10.0.0.3": (0, "")})
    start = trio.current_time()
    winner = await dial(network, at("10.0.0.1", "10.0.0.2", "10.0.0.3"), take_host, nothing)
    assert winner == "10.0.0.2"
    assert trio.current_time() - start == pytest.approx(STAGGER_S + 0.1)
    assert [host for _, host in network.tried] == ["10.0.0.1", "10.0.0.2"]


async def test_a_failure_starts_the_next_attempt_at_once(autojump_clock: object) -> None:
    network = ScriptedNetwork({"10.0.0.1": (0.01, "connection refused"), "10.0.0.2": (0, "")})
    start = trio.current_time()
    assert await dial(network, at("10.0.0.1", "10.0.0.2"), take_host, nothing) == "10.0.0.2"
    assert trio.current_time() - start == pytest.approx(0.01)


async def test_every_reason_is_kept_in_order(autojump_clock: object) -> None:
    network = ScriptedNetwork(
        {"10.0.0.1": (3, "no route to host"), "10.0.0.2": (0, ""), "10.0.0.3": (9999, "")}
    )

    async def refuse(raw: RawStream, _address: Address, _commit: Commit) -> str:
        raw.abort()
        raise HandshakeFailed("the other side plays our own role")

    with pytest.raises(PeerUnreachable) as caught:
        await dial(network, at("unknown", "10.0.0.1", "10.0.0.2", "10.0.0.3"), refuse, nothing)
    assert caught.value.attempts == (
        ("unknown:1", "direct: name or service not known"),
        ("10.0.0.1:1", "direct: no route to host"),
        ("10.0.0.2:1", "direct: the other side plays our own role"),
        ("10.0.0.3:1", "direct: connection timed out"),
    )
    assert caught.value.hint == "check the spelling"
    assert trio.current_time() < CONNECT_TIMEOUT_S + 3 * STAGGER_S + 0.1
    with pytest.raises(PeerUnreachable, match="no address"):
        await dial(network, [], refuse, nothing)


async def test_names_are_resolved_doubles_dropped_and_candidates_bounded(
    autojump_clock: object,
) -> None:
    hosts = [f"10.0.1.{number}" for number in range(30)]
    network = ScriptedNetwork(dict.fromkeys(["10.0.0.1", "10.0.0.2", *hosts], (0, "refused")))
    with pytest.raises(PeerUnreachable) as caught:
        await dial(network, at("many", "10.0.0.1", "many", *hosts), take_host, nothing)
    tried = [target for target, _ in caught.value.attempts]
    assert tried[:3] == ["10.0.0.1:1", "10.0.0.2:1", "10.0.1.0:1"]
    assert len(tried) == MAX_CANDIDATES


async def test_only_one_attempt_may_commit_and_a_failed_one_gives_way(
    autojump_clock: object,
) -> None:
    network = ScriptedNetwork({"10.0.0.1": (0, ""), "10.0.0.2": (0, "")})
    asked: list[tuple[str, bool]] = []

    async def establish(raw: RawStream, address: Address, commit: Commit) -> str:
        raw.abort()
        first = address.host == "10.0.0.1"
        if not first:
            await trio.sleep(0.5)
        asked.append((address.host, commit()))
        if first:
            await trio.sleep(1.0)
            raise HandshakeFailed("broke while sending the last message")
        await trio.sleep(0.5)
        asked.append((address.host, commit()))
        return address.host

    winner = await dial(network, at("10.0.0.1", "10.0.0.2"), establish, nothing)
    assert winner == "10.0.0.2"
    assert asked == [("10.0.0.1", True), ("10.0.0.2", False), ("10.0.0.2", True)]


async def test_a_result_is_discarded_when_another_attempt_crashes(autojump_clock: object) -> None:
    network = ScriptedNetwork({"10.0.0.1": (0, ""), "10.0.0.2": (0, "")})
    discarded: list[str] = []

    async def establish(raw: RawStream, address: Address, _commit: Commit) -> str:
        raw.abort()
        try:
            await trio.sleep(1 if address.host == "10.0.0.1" else 99)
        except trio.Cancelled:
            raise KeyError("a bug in the losing attempt") from None
        return address.host

    with pytest.raises(ExceptionGroup):
        await dial(network, at("10.0.0.1", "10.0.0.2"), establish, discarded.append)
    assert discarded == ["10.0.0.1"]


async def test_a_late_cancellation_neither_loses_nor_keeps_a_result(
    autojump_clock: object,
) -> None:
    network = ScriptedNetwork({"10.0.0.1": (0, "")})
    discarded: list[str] = []
    found: list[str] = []
    with trio.CancelScope() as scope:

        async def establish(raw: RawStream, address: Address, _commit: Commit) -> str:
            raw.abort()
            scope.cancel()  # the caller gives up in the very step in which we succeed
            return address.host

        found.append(await dial(network, at("10.0.0.1"), establish, discarded.append))
    assert len(found) + len(discarded) == 1


async def test_cancelling_closes_all_attempts(autojump_clock: object) -> None:
    network = ScriptedNetwork({f"10.0.0.{n}": (0, "") for n in range(1, 4)})

    async def hang(_raw: RawStream, _address: Address, _commit: Commit) -> str:
        await trio.sleep_forever()
        raise AssertionError

    with trio.move_on_after(5):
        await dial(network, at("10.0.0.1", "10.0.0.2", "10.0.0.3"), hang, nothing)
    assert len(network.tried) == 3
    assert network.world.open_connections == 0
