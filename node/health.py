"""What is wrong with this node, if anything, in words and with what to do next.

Problem: a status full of numbers leaves the judging to the reader, at three in the morning. Scripts on
the other hand grep English when there is no code to look at.

Idea: a pure function from the facts of one moment to a list of warnings. Each has a stable `code` (for
scripts and metrics), a severity, a text with the numbers in it, and a hint. The worst severity is the
verdict that the status leads with.

Invariants: sans-IO; codes never change their meaning; a fact that is unknown raises no warning; one
cause gives one warning (a warning that only follows from another is left out).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final

import attrs

__all__ = ["CODES", "Facts", "HealthWarning", "Severity", "assess", "verdict"]


class Severity(StrEnum):
    """How bad; the text is what status JSON carries."""

    INFO = "info"
    WARNING = "warning"
    FAILING = "failing"


@attrs.frozen
class HealthWarning:
    """One thing that is wrong."""

    code: str
    """Stable name, one of `CODES`."""
    severity: Severity
    text: str
    """What is the matter, with its numbers."""
    hint: str
    """What to do next."""

    def to_json(self) -> dict[str, str]:
        """As status JSON's `health` list carries it."""
        return {
            "code": self.code,
            "severity": self.severity.value,
            "text": self.text,
            "hint": self.hint,
        }


@attrs.frozen(kw_only=True)
class Facts:
    """What there is to know at one moment; None or the default is "unknown" or "does not apply"."""

    uptime_s: float = 0.0
    """Seconds since the daemon was ready."""
    bootstrap_configured: int = 0
    """Addresses in `network.bootstrap`."""
    bootstrap_reached: int | None = None
    """How many of them ever answered."""
    bootstrap_reasons: Sequence[str] = ()
    """Of those that did not: the address and why."""
    peers_connected: int = 0
    peers_lost: Sequence[tuple[str, str]] = ()
    """Peers that were active in the run and are gone, not revoked ones: (name, reason)."""
    refused_wrong_swarm: int = 0
    """Handshakes refused because the other side has another swarm key."""
    run: str | None = None
    """The run's name, None without one."""
    run_joined: bool = True
    """Whether the run has been found."""
    other_runs: Sequence[str] = ()
    """Connected peers that take part in another run of the same name."""
    other_models: tuple[int, int] = (0, 0)
    """Of the connected members: how many train another model than this node, and how many train one."""
    run_failure: str = ""
    """Why the run cannot go on at this node; empty while it can."""
    run_failure_hint: str = ""
    """What its error says to do next."""
    run_finished: bool = False
    """Whether the run is over: then a trainer that ended did as it should."""
    trainer: str = "none"
    """The trainer's state, as in status JSON."""
    trainer_error: str = ""
    """What the trainer said last, if it ended by itself."""
    trainer_restarts: int = 0
    """Restarts in the last ten minutes."""
    loss: float | None = None
    round_age_s: float | None = None
    """Seconds since the last round ended, while training."""
    round_usual_s: float | None = None
    """How long rounds took so far, in seconds."""
    quorum_missing: bool = False
    """Whether the run waits here because too few of the last epoch's members are in sight."""
    rounds_alone: int = 0
    """Rounds in a row that nobody else took part in."""
    alone_reason: str = ""
    """Why that is so, as far as this node can tell."""
    alone_hint: str = ""
    slow: Sequence[tuple[str, str, float]] = ()
    """What has become slow: ("member" or "link", in words, how many times)."""
    convicted: Sequence[str] = ()
    """Members that were proved to have signed two different entries under one number, by name."""
    convicted_itself: bool = False
    """Whether this node is one that was."""
    checkpoint_error: str = ""
    """Why the last checkpoint could not be written; empty if it was."""
    checkpoint_damaged: str = ""
    """What is wrong with a checkpoint that was passed over at the start; empty if none was."""
    disk_free_bytes: int | None = None
    checkpoint_bytes: int | None = None
    """Size of one checkpoint."""
    fds: int | None = None
    """Open file descriptors."""
    fd_limit: int | None = None
    loop_lag_max_ms: float | None = None
    """Longest stall of the event loop in the last minute, in milliseconds."""
    clock_skew_s: Mapping[str, float] = attrs.field(factory=dict)
    """Peers whose wall clocks differ from ours, by name, in seconds (positive: ahead of us)."""
    address_warning: str = ""
    """A listen address that could not be had, and why."""
    certificate_refusal: str = ""
    """Why other members do not take this node; empty if they do."""
    certificate_hint: str = ""
    certificate_days_left: float | None = None
    """Of a certificate that should have been renewed by now and was not."""


START_GRACE_S: Final = 30.0
"""A node that started just now has not had the time to find anybody: no warning about that yet."""
CLOCK_SKEW_S: Final = 2.0
"""Timestamps are for display and ties only; beyond this they start to mislead readers."""
LOOP_LAG_MS: Final = 250.0
"""The promise is 250 ms; a loop that stalls for longer delays heartbeats."""
FD_SHARE: Final = 0.8
SLOW_FACTOR: Final = 2.0
"""From here on a slow member or link is a warning, below it is told."""
MAX_SLOW: Final = 3

CODES: Final[Mapping[str, str]] = {
    "bootstrap-silent": "none of the bootstrap addresses answers",
    "no-peers": "no other node is connected",
    "peer-lost": "members of the run are gone",
    "quorum-missing": "the run waits at this node: too few members are in sight",
    "wrong-swarm": "nodes with another swarm key keep knocking",
    "run-not-found": "the run is not known in the swarm",
    "run-failed": "the run cannot go on at this node",
    "other-run": "peers take part in another run of the same name",
    "other-model": "this node's model is not that of the run's other members",
    "trainer-gone": "the training process is not running",
    "trainer-restarting": "the training process keeps dying",
    "loss-not-finite": "the loss is not a number any more",
    "round-stalled": "no round has ended for much longer than usual",
    "training-alone": "rounds end with this node alone",
    "slow-member": "a member begins its operations later than it used to, or all its links have become slow",
    "slow-link": "the link between two members has become slow",
    "identity-twice": "this node's identity is used twice: nobody takes its word in the run any more",
    "member-convicted": "a member signed two stories: its word in the run counts for nothing",
    "checkpoint-failed": "checkpoints cannot be written",
    "checkpoint-damaged": "a checkpoint could not be used at the start",
    "disk-low": "there is no room for the next checkpoints",
    "fds-low": "file descriptors are running out",
    "loop-lag": "the event loop stalls",
    "clock-skew": "a peer's clock differs from ours",
    "listen-failed": "a listen address cannot be had",
    "certificate-refused": "this node is no member of the swarm any more",
    "certificate-ending": "this node's certificate could not be renewed",
}
"""Every code with its meaning."""


def assess(facts: Facts) -> list[HealthWarning]:
    """The warnings that `facts` give, the worst first, otherwise in a fixed order."""
    found = [*_trust(facts), *_network(facts), *_run(facts), *_machine(facts)]
    order = [Severity.FAILING, Severity.WARNING, Severity.INFO]
    return sorted(found, key=lambda warning: order.index(warning.severity))


def verdict(warnings: Sequence[HealthWarning]) -> str:
    """The worst of `warnings`: "ok", "warning" or "failing"; informational ones do not count."""
    severities = {warning.severity for warning in warnings}
    if Severity.FAILING in severities:
        return "failing"
    return "warning" if Severity.WARNING in severities else "ok"


def _trust(facts: Facts) -> list[HealthWarning]:
    if facts.certificate_refusal:
        return [
            HealthWarning(
                "certificate-refused",
                Severity.FAILING,
                f"other members refuse this node: {facts.certificate_refusal}",
                facts.certificate_hint or "ask whoever runs the swarm",
            )
        ]
    if facts.certificate_days_left is None:
        return []
    return [
        HealthWarning(
            "certificate-ending",
            Severity.WARNING,
            f"this node's certificate ends in {facts.certificate_days_left:.0f} days, and nobody has renewed it",
            "the member that invited this node has to be connected for a moment; "
            "or join again with a new invite:  noded join CODE; the swarm's first node:  noded renew",
        )
    ]


def _network(facts: Facts) -> list[HealthWarning]:
    found = []
    settled = facts.uptime_s >= START_GRACE_S
    if facts.address_warning:
        found.append(
            HealthWarning(
                "listen-failed",
                Severity.WARNING,
                facts.address_warning,
                "free the port, or change network.listen",
            )
        )
    if facts.refused_wrong_swarm:
        found.append(
            HealthWarning(
                "wrong-swarm",
                Severity.WARNING,
                f"{facts.refused_wrong_swarm} connections came with another swarm key",
                "if they are yours, give them this swarm's key; otherwise ignore them",
            )
        )
    refused = bool(facts.certificate_refusal)  # then nobody is there, for that reason
    if settled and facts.peers_connected == 0 and not refused:
        if facts.bootstrap_configured and facts.bootstrap_reached == 0:
            found.append(
                HealthWarning(
                    "bootstrap-silent",
                    Severity.WARNING,
                    "; ".join(facts.bootstrap_reasons)
                    or f"none of {facts.bootstrap_configured} bootstrap addresses answers",
                    "those nodes are of another swarm; to enter it: noded leave, then noded join CODE"
                    if any("another swarm" in reason for reason in facts.bootstrap_reasons)
                    else "check the addresses, that a node runs there, and the firewalls between",
                )
            )
        elif not facts.peers_lost:
            found.append(
                HealthWarning(
                    "no-peers",
                    Severity.INFO,
                    "no other node is connected",
                    "noded invite prints a code with which another machine joins",
                )
            )
    lost = ""
    if facts.peers_lost and not refused:
        shown = ", ".join(f"{name} ({reason})" for name, reason in facts.peers_lost[:3])
        more = len(facts.peers_lost) - 3
        lost = f"lost {shown}" + (f" and {more} more" if more > 0 else "")
    if facts.quorum_missing and not facts.run_finished and not refused:
        found.append(
            HealthWarning(
                "quorum-missing",
                Severity.WARNING,
                "the run waits here: no majority of its members is in sight"
                + (f", {lost}" if lost else ""),
                "it goes on by itself once they are back; two nodes that shall not wait for each "
                'other need run.quorum = "any", or a third one',
            )
        )
    elif lost:
        found.append(
            HealthWarning(
                "peer-lost",
                Severity.WARNING,
                lost,
                "the run goes on without them; look at their logs if they do not come back",
            )
        )
    for name, skew_s in sorted(facts.clock_skew_s.items()):
        if abs(skew_s) >= CLOCK_SKEW_S:
            direction = "ahead of us" if skew_s > 0 else "behind us"
            found.append(
                HealthWarning(
                    "clock-skew",
                    Severity.WARNING,
                    f"peer {name} is {abs(skew_s):.1f} s {direction}",
                    "check the time service (NTP) on both machines",
                )
            )
    return found


def _run(facts: Facts) -> list[HealthWarning]:
    if facts.run is None or facts.run_finished:
        return []
    if facts.run_failure:
        return [
            HealthWarning(
                "run-failed",
                Severity.FAILING,
                f"the run {facts.run} cannot go on at this node: {facts.run_failure}",
                facts.run_failure_hint or "the daemon's log says more; restart it when it is fixed",
            )
        ]
    if not facts.run_joined:
        if facts.uptime_s < START_GRACE_S:
            return []
        return [
            HealthWarning(
                "run-not-found",
                Severity.WARNING,
                f"nobody in the swarm knows a run named {facts.run}",
                "check run.name; one node has to start it with run.create = true",
            )
        ]
    found = [*_convicted(facts), *_strays(facts)]
    trainer_down = facts.trainer in {"exited", "restarting"}
    if facts.trainer == "exited":
        found.append(
            HealthWarning(
                "trainer-gone",
                Severity.FAILING,
                "the training process has ended, and is not being restarted"
                + (f": {facts.trainer_error}" if facts.trainer_error else ""),
                "its last words are in trainer.log of the run's folder; "
                "restart the daemon when it is fixed",
            )
        )
    elif facts.trainer_restarts >= 3 or facts.trainer == "restarting":
        found.append(
            HealthWarning(
                "trainer-restarting",
                Severity.FAILING if facts.trainer_restarts >= 3 else Severity.WARNING,
                f"the training process died {facts.trainer_restarts} times in ten minutes",
                "its last words are in the daemon's log",
            )
        )
    if facts.loss is not None and facts.loss - facts.loss != 0:  # NaN or infinity
        found.append(
            HealthWarning(
                "loss-not-finite",
                Severity.FAILING,
                f"the loss is {facts.loss}",
                "lower the learning rate, and start again from an earlier checkpoint",
            )
        )
    stalled = (
        facts.round_age_s is not None
        and facts.round_usual_s is not None
        and facts.round_age_s > max(60.0, 5 * facts.round_usual_s)
    )
    if stalled and not trainer_down and not facts.quorum_missing:
        found.append(
            HealthWarning(
                "round-stalled",
                Severity.WARNING,
                f"no round has ended for {facts.round_age_s:.0f} s "
                f"(usually {facts.round_usual_s:.0f} s)",
                "noded peers shows who is behind",
            )
        )
    if facts.rounds_alone >= 3 and facts.peers_connected > 0 and not _strays(facts):
        found.append(
            HealthWarning(
                "training-alone",
                Severity.WARNING,
                f"the last {facts.rounds_alone} rounds ended with this node alone"
                + (f": {facts.alone_reason}" if facts.alone_reason else ""),
                facts.alone_hint or "noded peers shows what the others are doing",
            )
        )
    return found + _slow(facts)


def _slow(facts: Facts) -> list[HealthWarning]:
    """The worst few; a swarm in which everything is slow has another cause."""
    return [
        HealthWarning(
            f"slow-{what}",
            Severity.WARNING if factor >= SLOW_FACTOR else Severity.INFO,
            text,
            "look at what else that machine does, and at its network; noded top shows all links"
            if what == "member"
            else "noded top shows all links",
        )
        for what, text, factor in facts.slow[:MAX_SLOW]
    ]


def _convicted(facts: Facts) -> list[HealthWarning]:
    """Two stories under one number: nearly always one data folder that was copied to two machines."""
    found = []
    if facts.convicted_itself:
        found.append(
            HealthWarning(
                "identity-twice",
                Severity.FAILING,
                "entries of this node's identity contradict each other, and both are signed: "
                "members take its word for nothing in this run",
                "another machine runs with a copy of this data folder, or an old copy of it was "
                "put back: stop one of the two, and give it an identity of its own (noded init "
                "in an empty folder)",
            )
        )
    if facts.convicted:
        names = ", ".join(facts.convicted[:3])
        more = len(facts.convicted) - 3
        found.append(
            HealthWarning(
                "member-convicted",
                Severity.WARNING,
                f"{names}{f' and {more} more' if more > 0 else ''} signed two stories: "
                "what they say in this run counts for nothing",
                "noded state has the proof; two machines with one copied identity look like that, "
                "so each needs its own, and a liar does",
            )
        )
    return found


def _strays(facts: Facts) -> list[HealthWarning]:
    """Nodes that were meant to train together, and do not."""
    found = []
    if facts.other_runs:
        shown = ", ".join(facts.other_runs[:3])
        more = f" and {len(facts.other_runs) - 3} more" if len(facts.other_runs) > 3 else ""
        found.append(
            HealthWarning(
                "other-run",
                Severity.WARNING,
                f"{shown}{more} take part in another run that is named {facts.run} too",
                "one node alone starts a run: on the others take out run.create, and move the "
                "run's folder in the data directory away",
            )
        )
    differ, of = facts.other_models
    if differ and 2 * differ >= of:  # a node with the majority's model is not the one to mend
        found.append(
            HealthWarning(
                "other-model",
                Severity.WARNING,
                f"{differ} of {of} other members train a model with other parameters than this "
                "node's, and only equal ones are combined",
                "make the model the same on every node: names, shapes and order of its parameters",
            )
        )
    return found


def _machine(facts: Facts) -> list[HealthWarning]:
    found = []
    if facts.checkpoint_error:
        found.append(
            HealthWarning(
                "checkpoint-failed",
                Severity.FAILING,
                f"the last checkpoint could not be written: {facts.checkpoint_error}",
                "make room or mend the disk; the previous checkpoint is kept and training goes on",
            )
        )
    elif (
        facts.disk_free_bytes is not None
        and facts.checkpoint_bytes is not None
        and facts.disk_free_bytes < 2 * facts.checkpoint_bytes
    ):
        found.append(
            HealthWarning(
                "disk-low",
                Severity.WARNING,
                f"{facts.disk_free_bytes >> 20} MiB are free, "
                f"and a checkpoint takes {facts.checkpoint_bytes >> 20} MiB",
                "make room, or lower trainer.keep_checkpoints",
            )
        )
    if facts.checkpoint_damaged:
        found.append(
            HealthWarning(
                "checkpoint-damaged",
                Severity.WARNING,
                facts.checkpoint_damaged,
                "check the disk; an older state was used, and the next checkpoint ends this warning",
            )
        )
    if facts.fds is not None and facts.fd_limit and facts.fds >= FD_SHARE * facts.fd_limit:
        found.append(
            HealthWarning(
                "fds-low",
                Severity.WARNING,
                f"{facts.fds} of {facts.fd_limit} file descriptors are in use",
                "raise the limit (ulimit -n, LimitNOFILE=), or lower limits.max_peers",
            )
        )
    if facts.loop_lag_max_ms is not None and facts.loop_lag_max_ms >= LOOP_LAG_MS:
        found.append(
            HealthWarning(
                "loop-lag",
                Severity.WARNING,
                f"the event loop stalled for {facts.loop_lag_max_ms:.0f} ms",
                "leave the daemon a core: lower trainer.threads, or stop what else computes here",
            )
        )
    return found
