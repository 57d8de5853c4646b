"""A run of several members in one process, to look at a protocol with.

Drives both halves of a protocol exactly as the daemon and the trainer do. Training is seeded noise;
the certified collective is a weighted mean in member order. No clock, no network and no chance, so
that two rehearsals of one `Subject` can be compared byte by byte.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import attrs
import numpy as np

from gossip.collective.links.carriage import carried
from gossip.errors import GossipError
from gossip.protocol import (
    Apply,
    Averager,
    CollectiveOutcome,
    Contribution,
    Event,
    Protocol,
    ReduceMean,
    Vector,
    Views,
)

ROUNDS: Final = 4
WEIGHTS: Final = (3.0, 1.0, 2.0, 5.0)
NOW: Final = 100.0


class Nonconforming(GossipError, AssertionError):
    """The protocol breaks a rule that all protocols keep; the message says which."""

    hint = "docs/protocols.md has the rules and an example"


@attrs.frozen
class Subject:
    """A protocol with the settings to check it with."""

    protocol: type[Protocol]
    settings: Mapping[str, Any] = attrs.field(factory=dict)
    numel: int = 1003
    """Length of the vectors."""
    seed: int = 0

    def averager(self) -> Averager:
        """A fresh trainer side."""
        return self.protocol.averager(dict(self.settings))

    def coordinator(self) -> Protocol:
        """A fresh daemon side."""
        return self.protocol(self.protocol.parse_settings(dict(self.settings)))


def require(condition: object, message: str) -> None:
    """Raise `Nonconforming` unless the condition holds; `python -O` does not remove it."""
    if not condition:
        raise Nonconforming(message)


def drain(coordinator: Protocol) -> list[Event]:
    """All events that are there."""
    events: list[Event] = []
    while (event := coordinator.next_event()) is not None:
        events.append(event)
        require(len(events) < 100, "the coordinator's events do not come to an end")
    return events


class Member:
    """One node of a simulated run: shared vectors, and the two halves around them."""

    def __init__(self, subject: Subject, index: int) -> None:
        self.subject = subject
        self.coordinator = subject.coordinator()
        self.rng = np.random.default_rng((subject.seed, index))
        names = self.averager.vectors
        # What a fresh allocation holds is nobody's business, so it is not zero here.
        vectors = {name: np.full(subject.numel, 7.5, np.float32) for name in names}
        self.views: Views = MappingProxyType(vectors)

    @property
    def averager(self) -> Averager:
        """A new one for every call: a trainer may restart between any two."""
        return self.subject.averager()

    def start(self) -> None:
        """Begin the run with the initial parameters that the seed gives to all members."""
        rng = np.random.default_rng((self.subject.seed, 1 << 20))
        self.views["params"][:] = rng.standard_normal(self.subject.numel)
        self.averager.start(self.views)

    def train(self) -> None:
        """Local steps: any change of the parameters will do."""
        self.views["params"][:] += self.rng.standard_normal(self.subject.numel) * 0.1

    def resume_from(self, other: Member) -> None:
        """Be handed the consensus vectors of another member."""
        for name in self.averager.consensus:
            np.copyto(self.views[name], other.views[name])
        self.averager.resume(self.views)

    def copy(self, *names: str) -> dict[str, bytes]:
        """Bytes of these vectors (default: the consensus)."""
        return {name: self.views[name].tobytes() for name in names or self.averager.consensus}

    def digest(self) -> bytes:
        """The state digest."""
        return self.averager.state_digest(self.views)

    def ask(self, round_: int, weight: float) -> ReduceMean:
        """Contribute, and take the one exchange that the coordinator asks for."""
        self.averager.contribute(self.views)
        self.coordinator.contributed(Contribution(round_, 5, weight), NOW)
        events = drain(self.coordinator)
        require(
            len(events) == 1 and isinstance(events[0], ReduceMean),
            f"a contribution has to lead to one ReduceMean, not to {events}",
        )
        asked = events[0]
        assert isinstance(asked, ReduceMean)
        return asked

    def settle(self, asked: ReduceMean, members: int, weight: float) -> None:
        """The collective holds a certificate: apply what the coordinator says."""
        self.coordinator.collective_done(CollectiveOutcome(asked.round, members, weight), NOW)
        events = drain(self.coordinator)
        require(
            len(events) == 1 and isinstance(events[0], Apply),
            f"a certified outcome has to lead to one Apply, not to {events}",
        )
        apply = events[0]
        assert isinstance(apply, Apply)
        self.averager.apply(
            self.views, members=apply.members, weight=apply.weight, alone=apply.alone
        )


def weighted_mean(sources: Sequence[Vector], weights: Sequence[float]) -> Vector:
    """What the ring does: fp32 sums in member order, divided once by the total weight."""
    total = np.zeros_like(sources[0])
    for source, weight in zip(sources, weights, strict=True):
        total += source * np.float32(weight)
    if sum(weights) > 0:
        total /= np.float32(sum(weights))
    return total


def exchange(members: Sequence[Member], round_: int, weights: Sequence[float] = WEIGHTS) -> None:
    """One round of all members, with one certified collective."""
    weights = weights[: len(members)]
    asked = [member.ask(round_, weight) for member, weight in zip(members, weights, strict=True)]
    for want, weight in zip(asked, weights, strict=True):
        require(
            (want.source, want.out) == (asked[0].source, asked[0].out),
            "members ask for different vectors in the same round",
        )
        require(
            (want.round, want.weight) == (round_, weight),
            f"ReduceMean has to carry the contribution's round and weight, not {want}",
        )
    wire = asked[0].wire
    require(all(want.wire == wire for want in asked), "members ask for different wire formats")
    sources = [carried(member.views[asked[0].source], wire) for member in members]
    mean = carried(weighted_mean(sources, [want.weight for want in asked]), wire)
    for member, want in zip(members, asked, strict=True):
        np.copyto(member.views[want.out], mean)
    for member, want in zip(members, asked, strict=True):
        member.settle(want, len(members), sum(weights))


def started(subject: Subject, count: int) -> list[Member]:
    """Members at the run's start, all equal."""
    members = [Member(subject, index) for index in range(count)]
    for member in members:
        member.start()
    return members


def rehearse(subject: Subject, count: int, rounds: int) -> list[Member]:
    """Members after so many rounds."""
    members = started(subject, count)
    for round_ in range(rounds):
        for member in members:
            member.train()
        exchange(members, round_)
    return members


def _fingerprints(subject: Subject) -> Iterator[bytes]:
    members = started(subject, 3)
    for round_ in range(ROUNDS):
        for member in members:
            member.train()
        exchange(members, round_)
        for member in members:
            for name in sorted(member.views):
                yield member.views[name].tobytes()
            yield member.digest()


def fingerprint(subject: Subject) -> str:
    """Digest of every vector of every member over several rounds, in hex."""
    digest = hashlib.sha256()
    for part in _fingerprints(subject):
        digest.update(part)
    return digest.hexdigest()
