"""The numbers of failure detection in one place, each with what raising it buys and costs.

How the time from a death to the verdict comes about, for a member that dies at the worst moment, right after a heartbeat:

    heartbeats stop        quiet_s        nobody is doubted before; absorbs a lost heartbeat and pauses of the other side
    helpers are asked      probe_s        the last chance of a broken connection between two healthy members
    doubt is spread        doubt_s        the member's time to refute, once `confirmations` others doubt it as well
                           doubt_alone_s  the same while nobody else does: one observer alone is more likely at fault

The sum of the first three is the detection time. A member whose loop stalls for t seconds falls silent for up to t plus one
heartbeat, so stalls up to the sum minus a heartbeat (and the way of a message) evict nobody, however often they come.
"""

from __future__ import annotations

import attrs

from gossip.errors import InvalidSettings


@attrs.frozen(kw_only=True)
class SwimSettings:
    """Times in seconds; see `LAN` and `WAN`."""

    quiet_s: float
    """Silence of a connected member (not one byte; more than a heartbeat's interval) before helpers are asked about it."""
    probe_s: float
    """Wait for the answer to a probe that goes through helpers. More bears slower paths, and delays doubt by as much."""
    doubt_s: float
    """From doubt to verdict when `confirmations` others doubt the member too."""
    doubt_alone_s: float
    """From doubt to verdict when nobody else does."""
    gossip_s: float
    """Between two rounds of gossip, while there is news. Less spreads news faster and costs more messages."""
    probe_every_s: float = 2.0
    """Between two probes of members that we are not connected to, one member each. They are a second line: those connected to a
    dead member notice first, and tell."""
    sync_s: float = 30.0
    """Between two comparisons of tables with a random member; repairs what gossip missed."""
    fanout: int = 3
    """Members told in each round of gossip."""
    helpers: int = 3
    """Members asked to probe another one."""
    confirmations: int = 3
    """Doubts by distinct others that shorten the wait to `doubt_s`; fewer where the swarm is smaller."""
    spread: float = 3.0
    """Lambda: each piece of news is sent about lambda * ln(n + 1) times by each member (SWIM, section 4.1)."""
    max_members: int = 4096
    """Members in the table, gone ones included: at most some 4 MiB."""
    remember_s: float = 3600.0
    """How long a member that left or was lost stays in the table."""
    max_looks: int = 256
    """Probes of ours under way at once."""
    max_relayed: int = 512
    """Probes of others under way through us at once."""
    messages_per_s: float = 50.0
    """Accepted from one peer, with a burst of eight times as many; the rest is dropped and counted."""

    def __attrs_post_init__(self) -> None:
        if not 0 < self.doubt_s <= self.doubt_alone_s:
            raise InvalidSettings("doubt_s is positive and at most doubt_alone_s")
        if min(self.quiet_s, self.probe_s, self.gossip_s, self.probe_every_s, self.sync_s) <= 0:
            raise InvalidSettings("the times of membership are positive")
        if self.helpers < 1 or self.fanout < 1 or self.max_members < 2:
            raise InvalidSettings("helpers and fanout are at least 1, max_members at least 2")


LAN = SwimSettings(quiet_s=1.5, probe_s=0.5, doubt_s=2.4, doubt_alone_s=4.8, gossip_s=0.2)
"""One building: a dead member is out within 5 s; a stall of 3 s evicts nobody."""

WAN = SwimSettings(quiet_s=4.5, probe_s=1.5, doubt_s=4.0, doubt_alone_s=8.0, gossip_s=0.3)
"""The internet, also with heartbeats every three seconds: a dead member is out within 15 s, 11 where no loop stalls; a stall of
6 s evicts nobody."""
