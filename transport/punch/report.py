"""What came of a punch: every dial with its reason, equal ones together."""

from __future__ import annotations

from typing import Final

import attrs

from transport.address import Address
from transport.network import Path

MAX_NOTED: Final = 128
"""Different attempts kept for the report of one punch."""


@attrs.frozen
class Attempt:
    """The dials of one address in one round that came to the same end."""

    address: Address
    round: int
    """0 for the plain dials before the first round."""
    started_s: float
    """The first one's beginning, since the punch began."""
    took_s: float
    """The longest one's time."""
    reason: str
    """Why they failed; "" if it connected and the handshake went through."""
    count: int = 1
    """How many there were."""


@attrs.frozen(kw_only=True)
class PunchReport:
    """What came of one punch, for people and for statistics."""

    ok: bool
    """Whether the peer is connected without a relay now."""
    path: Path | None
    """How; None if not at all."""
    reason: str
    """Why not; "" if it is."""
    coordinated: bool
    """Whether we gave the signal."""
    rounds: int
    """0 if it did not come to dialing both ways."""
    rtt_s: float | None
    """Over the relay, the last one measured; None if we did not measure."""
    took_s: float
    attempts: tuple[Attempt, ...]
    """Equal ones together, in the order in which the first of each ended; at most `MAX_NOTED`."""
