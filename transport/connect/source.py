"""Dialing from where we listen: which local address to use, and what it means when that fails.

Problem: a NAT gives each local port a public one. Only if dials leave from the listening port does what others see of them lead
to the listener, and only then can two nodes meet in the middle (reference: Ford, Srisuresh, Kegel 2005, arXiv cs/0603074,
section 4). But one local port can have only one connection with each remote address and port. Idea: one rule for the choice, one
error for that clash.

Invariants: the source is one of the addresses given, of the family of the target; a loopback listener is only used for a
loopback target and the other way round a wildcard serves all.
"""

from __future__ import annotations

from collections.abc import Iterable

from transport.address import Address
from transport.errors import ConnectFailed


class SourceBusy(ConnectFailed):
    """The local address to dial from cannot be used for this target.

    While two nodes punch, this is a success seen from behind: the other side's dial came in on our listener first and holds
    the same pair of addresses (errno EADDRNOTAVAIL). Otherwise an old connection holds them, or another program the port.
    """

    default_hint = "dial from another local port"


def source_for(listening: Iterable[Address], target: Address) -> Address | None:
    """Our listening address to dial `target` from; None lets the system choose a port.

    Args:
        listening: what we really listen on, ports included.
        target: an IP literal; a name has no family yet and gives None.
    """
    if not target.is_ip:
        return None
    fitting = [
        address
        for address in listening
        if address.is_ip
        and address.port
        and (":" in address.host) == (":" in target.host)
        and (address.is_wildcard or address.is_loopback == target.is_loopback)
    ]
    # The exact host last: a wildcard lets the system choose the interface that leads to the target.
    return min(fitting, key=lambda address: not address.is_wildcard, default=None)
