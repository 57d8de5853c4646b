"""What a node can say about its place on the network, in words a person can act on (sans-IO).

Problem: "it does not connect" has five causes with five cures, and the facts that tell them apart are spread over dial-backs,
observers, routers and relays. Idea: collect the facts in one value; one pure function names the first verdict that fits and what
to do about it.

    direct      others can dial this node                               nothing to do
    punchable   behind a NAT with one mapping for all destinations      direct with most peers, by meeting over a relay
    relayed     behind a NAT with a mapping per destination             most peers need a relay; a port mapping would help
    local       only private or loopback addresses are known, and all peers are near    nothing to do while that is so
    unknown     too few peers to ask yet                                wait, or name a node to ask first
    isolated    no peer at all                                          check the bootstrap addresses, or give one to others
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum

import attrs

from transport.address import Address
from transport.address_kinds import is_public


class Standing(StrEnum):
    """Whether and how others can reach this node."""

    DIRECT = "direct"
    PUNCHABLE = "punchable"
    RELAYED = "relayed"
    LOCAL = "local"
    UNKNOWN = "unknown"
    ISOLATED = "isolated"


@attrs.frozen(kw_only=True)
class Relay:
    """A relay that holds a place for us."""

    node: str
    """Its node id as text."""
    rtt_s: float | None
    """Last measured round trip; None before the first."""


@attrs.frozen(kw_only=True)
class Facts:
    """Everything that the verdict rests on."""

    peers: int = 0
    """Connected now."""
    knows_others: bool = True
    """Whether this node was given addresses of others to begin with."""
    far_peers: int = 0
    """Of these, at public addresses."""
    interfaces: Sequence[str] = ()
    """Usable IP addresses of this machine."""
    reached: Mapping[Address, bool | None] = attrs.field(factory=dict)
    """Dial-back verdict for each address that was tried."""
    open: Sequence[Address] = ()
    """Of these, the ones that strangers can dial for certain."""
    observed: Sequence[Address] = ()
    """What enough peers see us at."""
    mapping: str = "unknown"
    """"independent", "dependent" (on the destination) or "unknown"; "none" without a NAT."""
    port_mapping: str = ""
    """How a router forwards our port, for example "NAT-PMP"; "" if none does."""
    port_mapping_failures: Mapping[str, str] = attrs.field(factory=dict)
    """Why each method did not."""
    relays: Sequence[Relay] = ()
    punches: tuple[int, int] = (0, 0)
    """Hole punches that succeeded, of how many tried."""


@attrs.frozen
class Diagnosis:
    """The verdict, in one word and one sentence, and what to do next ("" when nothing is)."""

    standing: Standing
    sentence: str
    advice: str


def diagnose(facts: Facts) -> Diagnosis:
    """Name the first verdict that fits the facts."""
    if any(is_public(at.host) for at in facts.open):
        return Diagnosis(Standing.DIRECT, "others can reach this node directly", "")
    if facts.peers == 0 and not facts.knows_others:
        return Diagnosis(
            Standing.ISOLATED,
            "no peer has connected, and this node was given nobody to connect to",
            "let another machine join: noded invite prints a code for it; or name a node of this swarm in network.bootstrap",
        )
    if facts.peers == 0:
        return Diagnosis(
            Standing.ISOLATED,
            "no peer is connected",
            "check network.bootstrap and that this machine may open outgoing TCP connections",
        )
    if facts.far_peers == 0:
        return Diagnosis(Standing.LOCAL, "all peers are on this machine or network", "")
    without_relay = "" if facts.relays else _NO_RELAY
    if facts.mapping == "independent":
        return Diagnosis(
            Standing.PUNCHABLE,
            "behind a NAT that can be punched: direct with most peers, after meeting over a relay",
            without_relay,
        )
    if facts.mapping == "dependent":
        return Diagnosis(
            Standing.RELAYED,
            "behind a NAT that maps each destination differently: most peers are reached over a relay",
            without_relay or _FORWARD,
        )
    closed = [at for at, no in facts.reached.items() if no is False and is_public(at.host)]
    if closed and facts.interfaces and not any(at.host in facts.interfaces for at in closed):
        return Diagnosis(
            Standing.UNKNOWN,
            "behind a NAT; too few peers in other networks to tell whether it can be punched",
            without_relay or _FORWARD,
        )
    if closed:
        return Diagnosis(
            Standing.PUNCHABLE,
            "a firewall keeps incoming connections out; it can be punched",
            without_relay or "allow incoming TCP on the listening port for direct connections",
        )
    return Diagnosis(
        Standing.UNKNOWN,
        "too few peers have been asked to tell",
        "wait a little; `network.bootstrap` with a node outside of this network helps",
    )


_NO_RELAY = "connect to a node that others can reach directly: it will serve as a relay"
_FORWARD = "forward the listening port on the router, or enable UPnP or NAT-PMP there"
