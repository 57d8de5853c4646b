"""What a document has to offer to be kept equal with others' replicas: a run's state, the swarm's statements.

The conversation (`gossip.antientropy`) and its driver (`gossip.replication`) use nothing else. What the methods mean is said where they are implemented: `crdt.state.RunState` and
`crdt.statements.Statements`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from crdt.exchange import Name
from crdt.wire import Wire


class Document(Protocol):
    """A replica that can be compared with others."""

    @property
    def version(self) -> int:
        """Grows with every change of this replica."""

    @property
    def edits(self) -> int:
        """Grows with everything that is to be pushed to others."""

    @property
    def sequence(self) -> int:
        """Number of the latest of those."""

    @property
    def convictions(self) -> int:
        """Grows with every writer convicted."""

    def __len__(self) -> int: ...

    def own_names(self, above: int = ...) -> list[Name]:
        """What is to be pushed and has a higher number than `above`."""

    def convicted(self) -> Mapping[bytes, object]:
        """Whose evidence is to be pushed."""

    def digest(self) -> bytes:
        """SHA-256 of the content."""

    def range_digest(self, start: bytes, end: bytes) -> bytes:
        """SHA-256 of a part of it."""

    def ranges(self, size: int, start: bytes = b"", end: bytes = b"") -> list[tuple[bytes, bytes]]:
        """Cut a part into pages."""

    def context(self, start: bytes = b"", end: bytes = b"") -> Wire:
        """What is known of a part."""

    def want(self, names: Iterable[bytes], /) -> Wire:
        """A question for more."""

    def delta(self, names: Sequence[Name], *, max_bytes: int) -> tuple[Wire | None, int]:
        """An answer, and how many of the names are dealt with."""

    def they_lack(self, untrusted_context: Wire) -> list[Name]:
        """What the sender lacks."""

    def we_lack(self, untrusted_context: Wire) -> list[bytes]:
        """What the sender has and we lack."""

    def hear(self, untrusted: Wire) -> list[Name]:
        """Join a delta; what of it was news and is no edit of this node."""
