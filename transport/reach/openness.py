"""Which of our addresses strangers can dial, by those who did (sans-IO).

Problem: behind a NAT that forwards a port by hand nothing but a stranger's connection proves that it works; yet who connects may have
been let in because we had dialed him, and what address he says he dialed is his word. Idea: a connection counts only from a host that
we have never dialed, and an address is open when hosts of `NEEDED` networks have come in there. A member with one machine can
therefore not talk a node out of its relays.

Invariants: at most `MAX_ADDRESSES` addresses with `MAX_NETWORKS` networks each; the ones confirmed longest ago go first; a proof
counts for `EXPIRY_S`.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from transport.address import Address
from transport.budget.admission import source_of

NEEDED: Final = 2
EXPIRY_S: Final = 3600.0
MAX_ADDRESSES: Final = 16
MAX_NETWORKS: Final = 8


class Openness:
    """Proofs by strangers."""

    def __init__(self) -> None:
        self._proofs: OrderedDict[Address, OrderedDict[str, float]] = OrderedDict()

    def stranger(self, address: Address, host: str, now: float) -> None:
        """A host that we have never dialed has connected, and says that it dialed `address`."""
        networks = self._proofs.setdefault(address, OrderedDict())
        self._proofs.move_to_end(address)
        network = source_of(host)
        networks[network] = now
        networks.move_to_end(network)
        while len(networks) > MAX_NETWORKS:
            networks.popitem(last=False)
        while len(self._proofs) > MAX_ADDRESSES:
            self._proofs.popitem(last=False)

    def is_open(self, address: Address, now: float) -> bool:
        """Whether enough strangers came in at `address` lately."""
        networks = self._proofs.get(address)
        if networks is None:
            return False
        return sum(at + EXPIRY_S > now for at in networks.values()) >= NEEDED

    def clear(self) -> None:
        """Forget everything: this machine has moved to another network."""
        self._proofs.clear()
