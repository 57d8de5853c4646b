"""Whether strangers can dial an address of ours: the verdict over many dial-backs, and when to ask again (sans-IO).

Problem: a node cannot see from inside whether it can be reached; it has to ask others to dial it, and any one of them may be cut off
itself, overloaded, or lying. Idea (after AutoNAT v2, libp2p/specs: autonat/autonat-v2.md): each network that dialed back has one vote
per address, its latest; `agree` votes on one side that lead the other by `LEAD` make a verdict, and once made it stays until the votes
say the opposite just as clearly. So a minority of liars can never flip a verdict, and makes one only while the honest have not voted.

Asked soon while the verdict is open, seldom when it is stable: `fast_s`, doubled after each vote that agrees with the verdict up to
`slow_s`; a vote against it brings the next question forward to `fast_s`. A question that brought no vote (refused, busy) is asked again
after `fast_s`, doubled each time as well.

Invariants: at most `max_addresses` addresses and `max_votes` votes for each, one per network; votes expire after `expiry_s`, and
without votes a verdict ends; chance and time are arguments.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Final

import attrs

from transport.address import Address
from transport.budget.admission import source_of
from transport.errors import UsageError

LEAD: Final = 2
"""One vote more or less never flips a verdict there and back."""


class Verdict(StrEnum):
    """What is known of an address."""

    REACHABLE = "reachable"
    UNREACHABLE = "unreachable"
    UNKNOWN = "unknown"


@attrs.frozen(kw_only=True)
class ReachabilitySettings:
    """How sure to be, and how often to ask."""

    agree: int = 3
    """Networks that must agree (count)."""
    max_votes: int = 9
    """Votes kept per address (count): enough that a third of liars among them does not matter."""
    expiry_s: float = 36000.0
    """Life of a vote (seconds): ten of the longest pauses, so that `max_votes` of them count when all is quiet."""
    fast_s: float = 2.0
    """Between questions while the verdict is open (seconds): a node that starts knows where it stands after some six of them."""
    slow_s: float = 3600.0
    """Between questions at most (seconds)."""
    jitter: float = 0.1
    """Share of a pause that is random, so that a swarm started at once does not ask at once."""
    max_addresses: int = 16
    """Addresses under test (count): as many as a node advertises."""

    def __attrs_post_init__(self) -> None:
        if not 1 <= self.agree <= self.max_votes or not 0 < self.fast_s <= self.slow_s:
            raise UsageError("reachability: agree <= max_votes and 0 < fast_s <= slow_s")
        if not 0 <= self.jitter < 1 or self.max_addresses < 1 or not self.expiry_s > 0:
            raise UsageError("reachability: jitter from 0 to 1, room for one address, some time")


@attrs.define(eq=False)
class _Vote:
    reached: bool
    at: float


@attrs.define(eq=False)
class _Test:
    ask_at: float
    pause_s: float
    verdict: Verdict = Verdict.UNKNOWN
    votes: OrderedDict[str, _Vote] = attrs.field(factory=OrderedDict)  # by network, latest last
    asked: OrderedDict[str, float] = attrs.field(
        factory=OrderedDict
    )  # the same, without an answer too


class Reachability:
    """The verdicts on our addresses.

    Args:
        settings: how sure, how often.
        rng: of pauses and of the choice among servers.
    """

    def __init__(self, settings: ReachabilitySettings, rng: random.Random) -> None:
        self.settings = settings
        self.networks_in_swarm: int | None = None
        """Networks we have peers in, if that is known: where there are fewer than `agree`, all of them must agree."""
        self._rng = rng
        self._tests: dict[Address, _Test] = {}

    def set_addresses(self, addresses: Iterable[Address], now: float) -> None:
        """Test exactly these from now on; what is known of those that stay is kept."""
        wanted = list(dict.fromkeys(addresses))[: self.settings.max_addresses]
        self._tests = {
            address: self._tests.get(address) or _Test(now, self.settings.fast_s)
            for address in wanted
        }

    def restart(self, now: float) -> None:
        """Forget all verdicts: this machine has moved to another network."""
        self._tests = {address: _Test(now, self.settings.fast_s) for address in self._tests}

    def hasten(self, now: float) -> None:
        """Somebody new can be asked: do so soon where the verdict is open."""
        for test in self._tests.values():
            if test.verdict is Verdict.UNKNOWN:
                test.pause_s = self.settings.fast_s
                test.ask_at = min(test.ask_at, now + self._jittered(test.pause_s))

    # The verdict

    def vote(self, address: Address, server_host: str, reached: bool, now: float) -> Verdict:
        """A server has dialed `address`, and came through or did not; returns the verdict.

        Votes on addresses that are not under test are ignored.
        """
        test = self._tests.get(address)
        if test is None:
            return Verdict.UNKNOWN
        network = source_of(server_host)
        test.votes[network] = _Vote(reached, now)
        test.votes.move_to_end(network)
        while len(test.votes) > self.settings.max_votes:
            test.votes.popitem(last=False)
        before = test.verdict
        self._judge(test, now)
        confirmed = test.verdict == (Verdict.REACHABLE if reached else Verdict.UNREACHABLE)
        if confirmed and before == test.verdict:
            test.pause_s = min(2 * test.pause_s, self.settings.slow_s)
        else:
            test.pause_s = self.settings.fast_s
        test.ask_at = now + self._jittered(test.pause_s)
        return test.verdict

    def no_vote(self, address: Address, now: float) -> None:
        """A question brought nothing: refused, busy, lost, or an answer without its proof."""
        test = self._tests.get(address)
        if test is not None:
            test.pause_s = min(2 * test.pause_s, self.settings.slow_s)
            test.ask_at = now + self._jittered(test.pause_s)

    def verdict(self, address: Address, now: float) -> Verdict:
        """What is known of `address` now."""
        test = self._tests.get(address)
        if test is None:
            return Verdict.UNKNOWN
        self._judge(test, now)
        return test.verdict

    def reached(self, address: Address, now: float) -> bool | None:
        """The verdict as True, False or None."""
        verdict = self.verdict(address, now)
        return None if verdict is Verdict.UNKNOWN else verdict is Verdict.REACHABLE

    # The schedule

    def due(self, now: float) -> tuple[Address, ...]:
        """Addresses to ask about now, the one that has waited longest first."""
        waiting = [(test.ask_at, address) for address, test in self._tests.items()]
        return tuple(address for ask_at, address in sorted(waiting) if ask_at <= now)

    def next_deadline(self) -> float | None:
        """When `due` will have something; None without addresses."""
        return min((test.ask_at for test in self._tests.values()), default=None)

    def choose(self, address: Address, servers: Sequence[str], now: float) -> int | None:
        """Whom to ask about `address`, and note that it is being asked.

        Networks that have not been asked come first, at random; then the one asked longest ago. So no server can
        make itself heard more often than the others.

        Args:
            address: one under test.
            servers: hosts of the candidates.
            now: seconds.

        Returns:
            Index into `servers`, or None if there is nobody or the address is not under test.
        """
        test = self._tests.get(address)
        if test is None or not servers:
            return None
        ranked = [
            (test.asked.get(source_of(host), -1.0), self._rng.random(), index)
            for index, host in enumerate(servers)
        ]
        _, _, chosen = min(ranked)
        network = source_of(servers[chosen])
        test.asked[network] = now
        test.asked.move_to_end(network)
        while len(test.asked) > 8 * self.settings.max_votes:
            test.asked.popitem(last=False)
        test.ask_at = now + self._jittered(test.pause_s)  # moves again with the answer
        return chosen

    # Internals

    def _judge(self, test: _Test, now: float) -> None:
        votes = test.votes
        while votes and next(iter(votes.values())).at + self.settings.expiry_s <= now:
            votes.popitem(last=False)
        yes = sum(vote.reached for vote in votes.values())
        no = len(votes) - yes
        agree = self.settings.agree
        if self.networks_in_swarm is not None:
            agree = max(1, min(agree, self.networks_in_swarm))
        lead = min(LEAD, agree)
        if yes >= agree and yes - no >= lead:
            test.verdict = Verdict.REACHABLE
        elif no >= agree and no - yes >= lead:
            test.verdict = Verdict.UNREACHABLE
        elif not votes:
            test.verdict = Verdict.UNKNOWN

    def _jittered(self, pause_s: float) -> float:
        return pause_s * (1 + self.settings.jitter * self._rng.uniform(-1, 1))
