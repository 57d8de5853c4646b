"""Who may spend how much of a relay's traffic.

Problem: the budget of a month is one number, and whoever asks fastest could have all of it within hours. Idea: every network has an
account of its own, which holds a quarter of the budget and fills up again in the same time; a byte is paid by the network of the node
that sent it, for nobody can help being sent to. And the last tenth of the budget is a reserve: it goes to reservations and to small
circuits, enough for two nodes to meet and to find a direct way, a quarter of it at most to one network.

Invariants: what is carried in t seconds is at most budget * (1 + t / budget_s), and what one network sends at most a quarter of that;
accounts are at most MAX_SOURCES. An account is forgotten with the process, and when as many others were used since: the whole budget
(`spent_bytes`) is what holds then.
"""

from __future__ import annotations

from typing import Final

from transport.budget.accounts import Accounts
from transport.budget.rates import TokenBucket
from transport.relay.settings import RelaySettings

MAX_SOURCES: Final = 4096
"""Networks whose traffic or requests are remembered (about 300 bytes each); the one used least recently goes first."""

NETWORK_SHARE: Final = 0.25
"""Of the budget, and of the reserve, for one network: several homes can use a relay, and no single one can empty it."""
RESERVE_SHARE: Final = 0.1
"""Of the budget, kept for nodes that only want to meet."""
SMALL_BYTES: Final = 131072
"""Of one circuit out of the reserve: what public relays give to each, enough for two handshakes and a punch."""


class Budget:
    """The traffic of one relay.

    Args:
        settings: `budget_bytes` and `budget_s`.
        now: monotonic seconds.
        spent_bytes: before this start.
    """

    def __init__(self, settings: RelaySettings, now: float, *, spent_bytes: int = 0) -> None:
        most = settings.budget_bytes
        self._all = TokenBucket(most / settings.budget_s, most, now)
        self._all.take(min(spent_bytes, most), now)
        self._reserve = RESERVE_SHARE * most
        self._share = NETWORK_SHARE * most
        self._share_of_reserve = NETWORK_SHARE * self._reserve
        self._small = min(SMALL_BYTES, self._share_of_reserve)
        self._accounts: Accounts[str] = Accounts(
            self._share / settings.budget_s, self._share, most=MAX_SOURCES
        )

    @property
    def known_networks(self) -> int:
        """Accounts that are remembered."""
        return len(self._accounts)

    def left(self, now: float) -> float:
        """Bytes of the whole."""
        return self._all.level(now)

    def wait_s(self, networks: tuple[str, ...], now: float) -> float:
        """Seconds until a small circuit between these networks could be carried; 0 if it can be now.

        What could carry next to nothing is not worth making.
        """
        ready_at = [self._all.ready_at(self._small, now)]
        for network in networks:
            account = self._accounts.remembered(network)
            if account is not None:
                ready_at.append(account.ready_at(self._kept_back(now) + self._small, now))
        return max(ready_at) - now

    def take(self, network: str, count: int, carried: int, now: float) -> bool:
        """Pay for `count` bytes, or return False and take nothing.

        Args:
            network: of the node that sent them.
            count: bytes.
            carried: by the same circuit before.
            now: monotonic seconds.
        """
        account = self._accounts.of(network, now)
        if self.left(now) < self._reserve and carried + count > self._small:
            return False
        if account.level(now) < self._kept_back(now) + count or not self._all.take(count, now):
            return False
        return account.take(count, now)

    def _kept_back(self, now: float) -> float:
        """What a network must leave in its account: while the reserve is used, all but its share of that."""
        in_reserve = self.left(now) < self._reserve
        return self._share - self._share_of_reserve if in_reserve else 0.0
