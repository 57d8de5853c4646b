"""What can go wrong in the DHT, under one root.

A lookup that finds nothing is not an error (it returns an empty list), nor is a peer that lies or stays silent
(it is counted and passed over). What remains is misuse by the caller and a service that has been closed.
"""

from __future__ import annotations


class DhtError(Exception):
    """Root of this room's errors; `hint` says what to do next and may be empty."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class InvalidRecord(DhtError):
    """A record is not what it claims to be, or breaks a limit; `reason` is one word for counters."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class InvalidKey(DhtError):
    """A key, target or node id is not 32 bytes long."""


class NoUsableAddress(DhtError):
    """None of a provider's addresses could be used by anybody."""


class TooManyRecords(DhtError):
    """This node publishes as many records of its own as other nodes would accept from it."""


class DhtBusy(DhtError):
    """Too many operations at once; wait for some to end."""


class DhtClosed(DhtError):
    """The service has been closed while, or before, the operation ran."""
