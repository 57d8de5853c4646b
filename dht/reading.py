"""Records as a reader takes them: each verified, the newest of each signer kept, none older than what was read before.

Invariants: nothing enters `Findings` unverified; a signer's sequence never falls, within one search and from one search to the next
(a liar who replays yesterday's record cannot take back what this node has read today); both memories are bounded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from dht.errors import InvalidRecord
from dht.record import SignedRecord, Verify, check

# Signers collected by one search: k holders of `records_per_key` each could send more.
MAX_SIGNERS = 256
# (key, signer) pairs whose newest sequence is remembered between searches.
MAX_REMEMBERED = 4096


class Memory:
    """The highest sequence read from each signer under each key; the longest unread is forgotten first."""

    def __init__(self, most: int = MAX_REMEMBERED) -> None:
        self._most = most
        self._highest: OrderedDict[tuple[bytes, bytes], int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._highest)

    def older(self, record: SignedRecord) -> bool:
        """Return whether a newer record of the same signer and key has been read."""
        return record.sequence < self._highest.get((record.key, record.public_key), 0)

    def note(self, record: SignedRecord) -> None:
        """Remember a verified record's sequence."""
        where = (record.key, record.public_key)
        highest = max(record.sequence, self._highest.pop(where, 0))
        self._highest[where] = highest
        if len(self._highest) > self._most:
            self._highest.popitem(last=False)


class Findings:
    """What one search for a key has brought so far."""

    def __init__(self, key: bytes, *, swarm_id: bytes, verify: Verify, memory: Memory) -> None:
        self._key = key
        self._swarm_id = swarm_id
        self._verify = verify
        self._memory = memory
        self._held: dict[bytes, SignedRecord] = {}  # signer -> newest

    def newest(self) -> tuple[SignedRecord, ...]:
        """Return the newest record of each signer, sorted by signer."""
        return tuple(self._held[signer] for signer in sorted(self._held))

    def of(self, signer: bytes) -> SignedRecord | None:
        """Return the newest record of `signer`."""
        return self._held.get(signer)

    def trust(self, records: Iterable[SignedRecord]) -> None:
        """Take records from our own store, verified when they entered it."""
        for record in records:
            self._keep(record)

    def take(self, records_untrusted: list[SignedRecord], wall: float) -> bool:
        """Verify what a peer sent and keep what is new.

        Returns:
            Whether it was honest. One forged record is enough for the answer to be thrown away whole.
        """
        worth: list[SignedRecord] = []
        for record in records_untrusted:
            known = self._held.get(record.public_key)
            if known is not None and record.sequence <= known.sequence:
                continue  # nothing new, so its signature does not matter
            if known is None and len(self._held) + len(worth) >= MAX_SIGNERS:
                continue
            try:
                check(
                    record,
                    swarm_id=self._swarm_id,
                    key=self._key,
                    wall=wall,
                    verify=self._verify,
                )
            except InvalidRecord as error:
                if error.reason == "expired":
                    continue
                return False
            worth.append(record)
        for record in worth:
            self._keep(record)
        return True

    def _keep(self, record: SignedRecord) -> None:
        known = self._held.get(record.public_key)
        if self._memory.older(record) or (known is not None and record.sequence <= known.sequence):
            return
        self._memory.note(record)
        self._held[record.public_key] = record
