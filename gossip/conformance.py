"""What every protocol must hold, as checks that any test runner can call.

Problem: a protocol is arithmetic in one process and decisions in another, written by anybody, and a
single bit of difference between members ends a run. Idea: rehearse a run (`gossip.rehearsal`), and
look after every step at what must and what must not have changed.

A check takes a `Subject` and returns, or raises `Nonconforming` with what was seen. `check` runs all
of them. `fingerprint` digests a whole run of several rounds: printed by two interpreters with
different PYTHONHASHSEED (``python -m gossip.conformance NAME``) it must be the same line.

Not-a-number, as every protocol has to handle it: a trainer whose parameters are not finite calls
`resume` and contributes with weight 0, so after `resume` nothing non-finite may be left to contribute;
and if a non-finite mean is certified after all, every member applies it without an error and they
stay equal bit for bit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from gossip.protocol import (
    Apply,
    CollectiveOutcome,
    Contribution,
    Protocol,
    ReduceMean,
    load_protocol,
)
from gossip.rehearsal import (
    NOW,
    ROUNDS,
    Member,
    Nonconforming,
    Subject,
    drain,
    exchange,
    fingerprint,
    rehearse,
    require,
    started,
)
from gossip.settings_check import check_settings

__all__ = ["CHECKS", "Nonconforming", "Subject", "check", "fingerprint"]


# ---- settings and shape ----------------------------------------------------------------------


def settings_round_trip(subject: Subject) -> None:
    """Settings survive the manifest, and what is not one of them is refused by its name."""
    check_settings(subject.protocol, subject.settings, subject.protocol.averager)


def vectors_are_declared(subject: Subject) -> None:
    """Names are unique, `params` is private, and the first consensus vector is the parameters."""
    averager = subject.averager()
    vectors, consensus = averager.vectors, averager.consensus
    require(len(set(vectors)) == len(vectors), "a vector is named twice")
    require(len(set(consensus)) == len(consensus) > 0, "consensus vectors: none, or one twice")
    require(set(consensus) <= set(vectors), "a consensus vector is not among the vectors")
    require("params" in vectors, "there is no vector `params`")
    require("params" not in consensus, "`params` changes with every local step: not consensus")
    member = started(subject, 1)[0]
    require(
        member.copy(consensus[0])[consensus[0]] == member.views["params"].tobytes(),
        f"after start, {consensus[0]!r} (it is saved as the model) has to equal `params`",
    )
    asked = member.ask(0, 1.0)
    require(
        {asked.source, asked.out} <= set(vectors) - {*consensus, "params"}
        and asked.source != asked.out,
        f"ReduceMean reads {asked.source!r} and writes {asked.out!r}: two vectors of their own",
    )


def digest_covers_consensus(subject: Subject) -> None:
    """Any bit of a consensus vector changes the digest; nothing else does."""
    member = rehearse(subject, 2, 1)[0]
    before = member.digest()
    require(isinstance(before, bytes) and len(before) == 32, "a state digest has 32 bytes")
    for name in member.averager.vectors:
        bits = member.views[name].view(np.uint32)
        for at in (0, subject.numel - 1):
            bits[at] ^= 1
            changed = member.digest() != before
            bits[at] ^= 1
            expected = name in member.averager.consensus
            require(
                changed == expected,
                f"state_digest {'ignores' if expected else 'covers'} the vector {name!r}",
            )


# ---- the averager ----------------------------------------------------------------------------


def alone_keeps_local_work(subject: Subject) -> None:
    """A swarm of one trains like a plain loop: parameters are kept bit for bit."""
    member = started(subject, 1)[0]
    for round_ in range(ROUNDS):
        member.train()
        before = member.copy("params")
        exchange([member], round_)
        require(member.copy("params") == before, "a round alone changes the parameters")
        first = member.averager.consensus[0]
        require(
            member.copy(first)[first] == before["params"],
            f"after a round alone, {first!r} is not the parameters bit for bit",
        )


def members_stay_equal(subject: Subject) -> None:
    """Members that start equal and receive equal bytes stay equal, bit for bit."""
    members = started(subject, 3)
    for round_ in range(ROUNDS):
        for member in members:
            member.train()
        exchange(members, round_)
        _equal(members, f"after round {round_}")


def _equal(members: Sequence[Member], when: str) -> None:
    for member in members[1:]:
        for name, data in member.copy().items():
            require(data == members[0].views[name].tobytes(), f"members differ in {name!r} {when}")
        require(member.digest() == members[0].digest(), f"state digests differ {when}")


def contribute_leaves_state_alone(subject: Subject) -> None:
    """Until an outcome is certified, neither consensus nor parameters move, and a retry is free."""
    member = rehearse(subject, 2, 2)[0]
    member.train()
    before = member.copy(*member.averager.consensus, "params")
    asked = member.ask(2, 1.0)
    require(
        member.copy(*before) == before, "contribute changes consensus vectors or the parameters"
    )
    first = member.copy(asked.source)
    # An aborted collective leaves anything in `out`, and the round is offered once more.
    member.views[asked.out].fill(np.nan)
    again = member.ask(2, 1.0)
    require(again == asked, f"the same contribution led to {asked} and then to {again}")
    require(member.copy(*before) == before, "an aborted collective left a trace in the state")
    require(
        member.copy(asked.source) == first, "contributing twice gives two different contributions"
    )


def aborted_collective_changes_nothing(subject: Subject) -> None:
    """A round that took three attempts ends as the one that took one."""
    plain, tried = rehearse(subject, 2, 1), rehearse(subject, 2, 1)
    for members in (plain, tried):
        for member in members:
            member.train()
    for member in tried:
        for _ in range(2):
            asked = member.ask(1, 1.0)
            member.views[asked.out].fill(np.inf)
    exchange(plain, 1)
    exchange(tried, 1)
    for one, other in zip(plain, tried, strict=True):
        require(one.digest() == other.digest(), "an aborted collective changed the next result")
        require(one.copy("params") == other.copy("params"), "an aborted collective moved `params`")


def late_joiner_catches_up(subject: Subject) -> None:
    """The consensus vectors alone make a newcomer equal to those that were there before."""
    members = rehearse(subject, 2, 2)
    joiner = Member(subject, 9)
    joiner.start()
    joiner.train()
    joiner.resume_from(members[0])
    _equal([*members, joiner], "after a newcomer was handed the state")
    first = joiner.averager.consensus[0]
    require(
        joiner.copy("params")["params"] == joiner.copy(first)[first],
        f"resume has to set `params` from {first!r}",
    )
    members.append(joiner)
    for round_ in (2, 3):
        for member in members:
            member.train()
        exchange(members, round_)
        _equal(members, f"{round_ - 1} rounds after a newcomer joined")


def zero_weight_moves_nothing(subject: Subject) -> None:
    """Whatever a member contributes with weight 0, the result is the same."""
    digests = set()
    for scale in (0.0, 1.0, -1000.0):
        members = started(subject, 2)
        members[0].train()
        members[1].views["params"][:] *= np.float32(1 + scale)
        exchange(members, 0, (2.0, 0.0))
        digests.add(members[0].digest())
    require(len(digests) == 1, "a contribution of weight 0 moves the result")


def non_finite_is_contained(subject: Subject) -> None:
    """`resume` forgets what is not finite; a non-finite mean breaks no equality and no process."""
    members = rehearse(subject, 2, 1)
    broken = members[1]
    broken.views["params"].fill(np.nan)
    broken.averager.resume(broken.views)
    asked = broken.ask(1, 0.0)
    require(
        np.isfinite(broken.views["params"]).all() and np.isfinite(broken.views[asked.source]).all(),
        "after non-finite parameters and `resume`, the contribution is still not finite",
    )
    exchange(members, 1, (1.0, 0.0))
    _equal(members, "after one of them went back to the run's state")
    require(
        all(np.isfinite(members[0].views[name]).all() for name in members[0].averager.consensus),
        "a member that resumed and sat the round out made the state non-finite",
    )
    for member in members:
        member.train()
        want = member.ask(2, 1.0)
        member.views[want.out][:] = [np.nan, np.inf, -np.inf, 1.0][: subject.numel] + [0.5] * max(
            0, subject.numel - 4
        )
        with np.errstate(all="ignore"):
            member.settle(want, 2, 2.0)
    _equal(members, "after a certified mean that is not finite")


# ---- the coordinator ---------------------------------------------------------------------------


def applies_only_certified_outcomes(subject: Subject) -> None:
    """Nothing without a contribution, nothing for another round, and once for each."""
    coordinator = subject.coordinator()
    require(not drain(coordinator), "a new coordinator has something to do before anything")
    coordinator.collective_done(CollectiveOutcome(0, 2, 2.0), NOW)
    require(not drain(coordinator), "an outcome nobody asked for is applied")
    coordinator.contributed(Contribution(7, 5, 1.0), NOW)
    events = drain(coordinator)
    require(
        len(events) == 1 and isinstance(events[0], ReduceMean),
        f"a contribution has to lead to one ReduceMean, not to {events}",
    )
    require(not drain(coordinator), "there are events while the only collective is running")
    for stale in (6, 8, 0):
        coordinator.collective_done(CollectiveOutcome(stale, 2, 2.0), NOW)
        require(not drain(coordinator), f"in round 7, the outcome of round {stale} is applied")
    for members, alone in ((3, False), (1, True)):
        coordinator.contributed(Contribution(7, 5, 1.0), NOW)
        drain(coordinator)
        coordinator.collective_done(CollectiveOutcome(7, members, 4.5), NOW)
        expected = [Apply(7, members, 4.5, alone)]
        events = drain(coordinator)
        require(events == expected, f"the outcome has to lead to {expected}, not to {events}")
    coordinator.collective_done(CollectiveOutcome(7, 3, 4.5), NOW)
    require(not drain(coordinator), "the same outcome is applied twice")


def one_collective_at_a_time(subject: Subject) -> None:
    """A newer contribution replaces whatever was under way."""
    coordinator = subject.coordinator()
    coordinator.contributed(Contribution(3, 5, 1.0), NOW)
    coordinator.contributed(Contribution(9, 5, 2.0), NOW)
    events = drain(coordinator)
    require(
        len(events) == 1 and isinstance(events[0], ReduceMean) and events[0].round == 9,
        f"two contributions, of round 3 and then 9, led to {events}",
    )
    coordinator.collective_done(CollectiveOutcome(3, 2, 2.0), NOW)
    require(not drain(coordinator), "the outcome of a replaced contribution is applied")
    coordinator.collective_done(CollectiveOutcome(9, 2, 2.0), NOW)
    coordinator.contributed(Contribution(10, 5, 2.0), NOW)
    events = drain(coordinator)
    require(
        len(events) == 1 and isinstance(events[0], ReduceMean),
        f"after a newer contribution, an old result is still to be applied: {events}",
    )


# ---- the whole ---------------------------------------------------------------------------------


def same_inputs_same_run(subject: Subject) -> None:
    """No clock, no chance, no state kept between calls."""
    require(
        fingerprint(subject) == fingerprint(subject), "the same run gives other vectors next time"
    )


CHECKS: Final[Mapping[str, Callable[[Subject], None]]] = MappingProxyType(
    {
        check.__name__: check
        for check in (
            settings_round_trip,
            vectors_are_declared,
            digest_covers_consensus,
            alone_keeps_local_work,
            members_stay_equal,
            contribute_leaves_state_alone,
            aborted_collective_changes_nothing,
            late_joiner_catches_up,
            zero_weight_moves_nothing,
            non_finite_is_contained,
            applies_only_certified_outcomes,
            one_collective_at_a_time,
            same_inputs_same_run,
        )
    }
)
"""Every check by name, for runners that want one test for each."""


def check(protocol: type[Protocol], settings: Mapping[str, Any] | None = None) -> None:
    """Run every check, with vectors of one value and of many.

    Raises:
        Nonconforming: the first rule that is broken, named.
    """
    for numel in (1, 1003):
        subject = Subject(protocol, settings or {}, numel=numel)
        for name, run in CHECKS.items():
            try:
                run(subject)
            except Nonconforming as error:
                raise Nonconforming(f"{protocol.__name__}: {name}: {error}") from None
            except Exception as error:
                raise Nonconforming(f"{protocol.__name__}: {name}: it raised {error!r}") from error


def main(names: Sequence[str]) -> int:
    """Check installed protocols by name; one line each, with the fingerprint of a run."""
    for name in names:
        protocol = load_protocol(name)
        check(protocol)
        sys.stdout.write(f"{name} {fingerprint(Subject(protocol))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
