"""Composed documents: several values, each of a kind of its own, joined side by side.

A product of join semilattices is one: two documents join part by part, a delta is a document that has
some of the parts only, and every law that the parts keep holds for the whole. The kinds are fixed
where the document is designed, never taken from the wire.
"""

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import attrs

from crdt.counter import PNCounter
from crdt.errors import MalformedState
from crdt.log import BoundedLog
from crdt.map import AWMap
from crdt.mvregister import MVRegister
from crdt.orset import ORSet
from crdt.owned import OwnedMap
from crdt.register import LWW, MaxRegister
from crdt.wire import Wire, as_list, as_row, check_ascending

Value: TypeAlias = (
    LWW | MaxRegister | PNCounter | ORSet | AWMap | MVRegister | OwnedMap | BoundedLog
)
MAX_PARTS = 64


class Kind(Protocol):
    """A type of values: made empty by calling it, read from the wire, and joined."""

    def __call__(self) -> Any: ...  # noqa: D102
    def from_wire(self, untrusted: Wire) -> Any: ...  # noqa: D102


@attrs.frozen
class Document:
    """Named parts. A part that is not there is empty."""

    schema: Mapping[str, Kind]
    parts: Mapping[str, Any] = attrs.field(factory=dict)

    def __getitem__(self, name: str) -> Any:
        """The value of a part."""
        part = self.parts.get(name)
        return self.schema[name]() if part is None else part

    def put(self, name: str, delta: Value) -> tuple["Document", "Document"]:
        """Join a part's delta; returns the new document and the delta to send to others."""
        assert name in self.schema
        change = Document(self.schema, {name: delta})
        return self.join(change), change

    def join(self, other: "Document") -> "Document":
        """Merge with another replica or delta of the same schema."""
        parts = dict(self.parts)
        for name, theirs in other.parts.items():
            mine = parts.get(name)
            parts[name] = theirs if mine is None else mine.join(theirs)
        return Document(self.schema, parts)

    def summary(self) -> dict[str, Any]:
        """What to tell a replica that shall compute our `delta_since`.

        A register is its own summary, and so is a counter.
        """
        return {
            name: part.summary() if hasattr(part, "summary") else part
            for name, part in self.parts.items()
        }

    def delta_since(self, known: Mapping[str, Any]) -> "Document":
        """What a replica with this summary lacks; parts that are equal there are left out."""
        news = {}
        for name, part in self.parts.items():
            if name not in known:
                news[name] = part
            elif not hasattr(part, "delta_since"):
                if part.join(known[name]) != known[name]:
                    news[name] = part
            else:
                delta = part.delta_since(known[name])
                if delta != type(part)():
                    news[name] = delta
        return Document(self.schema, news)

    def to_wire(self) -> Wire:
        """[[name, part], ...], ascending; empty parts are left out."""
        return [
            [name, self.parts[name].to_wire()]
            for name in sorted(self.parts)
            if self.parts[name] != self.schema[name]()
        ]

    @classmethod
    def from_wire(cls, untrusted: Wire, schema: Mapping[str, Kind]) -> "Document":
        """Raises: CrdtError, also for parts that the schema does not name."""
        parts: dict[str, Any] = {}
        names: list[str] = []
        for row in as_list(untrusted, "document", most=MAX_PARTS):
            name, wire = as_row(row, "document part", length=2)
            if not isinstance(name, str) or name not in schema:
                raise MalformedState("document: a part that its schema does not name")
            names.append(name)
            parts[name] = schema[name].from_wire(wire)
            if parts[name] == schema[name]():
                raise MalformedState("document: an empty part")
        check_ascending(names, "document")
        return cls(schema, parts)
