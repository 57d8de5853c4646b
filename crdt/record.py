"""What one member says about itself, and which of two of its statements holds.

Every member writes one record, its own. A record carries the member's whole statement (who it is,
how far it has come) under one sequence, which only its owner raises: the record with the higher
sequence holds, so comparing two replicas takes one number per member and nothing needs a
tombstone. Sending a few hundred bytes again for each progress update is the price; in exchange a
reader never combines a member's new half with its old half.

Order of two records of one writer: sequence, then timestamp, then canonical bytes. The latter two
matter only if a sequence was used twice (a cloned machine, a clock set back): replicas
still agree.

Wire, strict (what cannot be reproduced byte for byte is refused, for digests are taken over it):

    record      [writer, sequence, physical_ms, counter, member or None, progress or None]
    member      [name, [address, ...], role, status, model, reason]
    progress    [round, step, loss or None, tokens, tokens_per_s, state_sha256]
    checkpoint  [step, [round, sha256, holder]]        (a max register, ranked by step)
"""

import math
from typing import Literal, TypeAlias, cast

import attrs

from crdt.clock import Timestamp
from crdt.errors import StateTooLarge
from crdt.register import MaxRegister
from crdt.wire import (
    Wire,
    as_bytes,
    as_choice,
    as_float,
    as_hash,
    as_int,
    as_list,
    as_row,
    as_text,
    as_writer,
    canonical,
)

MAX_NAME_CHARS = 64
MAX_ADDRESSES = 16
MAX_ADDRESS_CHARS = 264
"""The longest host name (253), brackets, colon and port."""
MAX_REASON_CHARS = 256
MAX_RECORD_BYTES = 4096
"""Per writer, canonical. 4,096 members then stay within 16 MiB."""

Role: TypeAlias = Literal["trainer", "observer", "relay"]
Status: TypeAlias = Literal["active", "left"]
ROLES = ("trainer", "observer", "relay")
STATUSES = ("active", "left")


def _name(value: Wire) -> str:
    return as_text(value, "member name", most=MAX_NAME_CHARS)


def _addresses(value: Wire) -> tuple[str, ...]:
    return tuple(
        as_text(address, "member address", least=1, most=MAX_ADDRESS_CHARS)
        for address in as_list(value, "member addresses", most=MAX_ADDRESSES)
    )


def _role(value: Wire) -> Role:
    return cast("Role", as_choice(value, "member role", ROLES))


def _status(value: Wire) -> Status:
    return cast("Status", as_choice(value, "member status", STATUSES))


def _model(value: Wire) -> bytes:
    return as_hash(value, "member model")


def _reason(value: Wire) -> str:
    return as_text(value, "reason", most=MAX_REASON_CHARS)


def _count(value: Wire) -> int:
    return as_int(value, "count")


def _loss(value: Wire) -> float | None:
    # A diverged run must still be able to report its progress.
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return as_float(float(value) if type(value) is int else value, "loss")


def _rate(value: Wire) -> float:
    loss = _loss(value)
    return 0.0 if loss is None else loss


def _state_hash(value: Wire) -> bytes:
    return as_hash(value, "state hash")


def _file_hash(value: Wire) -> bytes:
    return as_hash(value, "checkpoint hash", optional=False)


def _holder(value: Wire) -> bytes:
    return as_writer(value, "checkpoint holder")


@attrs.frozen
class MemberInfo:
    """A member of the run's roster. Construction raises CrdtError beyond the bounds above."""

    name: str = attrs.field(converter=_name)
    addresses: tuple[str, ...] = attrs.field(converter=_addresses)
    role: Role = attrs.field(converter=_role, default="trainer")
    status: Status = attrs.field(converter=_status, default="active")
    model: bytes = attrs.field(converter=_model, default=b"")
    """Hash of the model's parameter names and shapes; empty while no trainer is attached."""
    reason: str = attrs.field(converter=_reason, default="")
    """Why it left."""

    def to_wire(self) -> Wire:
        """Plain builtins; `from_wire` takes them back."""
        addresses = list(self.addresses)
        return [self.name, addresses, self.role, self.status, self.model, self.reason]

    @classmethod
    def from_wire(cls, untrusted: Wire) -> "MemberInfo":
        """Raises: CrdtError."""
        return cls(*as_row(untrusted, "member", length=6))


@attrs.frozen
class Progress:
    """How far a member has come. Construction raises CrdtError for values that are not counts."""

    round: int = attrs.field(converter=_count)
    """Rounds completed."""
    step: int = attrs.field(converter=_count)
    """Local steps done in the run."""
    loss: float | None = attrs.field(converter=_loss)
    """None where there is none, and where it is not a finite number."""
    tokens: int = attrs.field(converter=_count)
    """Tokens this member has trained on, in total."""
    tokens_per_s: float = attrs.field(converter=_rate)
    state_sha256: bytes = attrs.field(converter=_state_hash, default=b"")
    """Hash of the consensus state after `round`; empty where unknown."""

    def to_wire(self) -> Wire:
        """Plain builtins; `from_wire` takes them back."""
        return [
            self.round,
            self.step,
            self.loss,
            self.tokens,
            self.tokens_per_s,
            self.state_sha256,
        ]

    @classmethod
    def from_wire(cls, untrusted: Wire) -> "Progress":
        """Raises: CrdtError."""
        row = as_row(untrusted, "progress", length=6)
        if row[2] is not None:
            as_float(row[2], "loss")
        as_float(row[4], "tokens per second")
        return cls(*row)


@attrs.frozen
class CheckpointInfo:
    """A verified checkpoint that some member holds."""

    step: int = attrs.field(converter=_count)
    round: int = attrs.field(converter=_count)
    sha256: bytes = attrs.field(converter=_file_hash)
    holder: bytes = attrs.field(converter=_holder)
    """Node id of a member that has the file."""

    def to_register(self) -> MaxRegister:
        """As an entry of the max register, ranked by step."""
        return MaxRegister(self.step, (self.round, self.sha256, self.holder))

    @classmethod
    def from_register(cls, register: MaxRegister) -> "CheckpointInfo | None":
        """Raises: CrdtError, where the fields of a received register are not a checkpoint's."""
        if register.rank < 0:
            return None
        round_, sha256, holder = as_row(register.fields, "checkpoint", length=3)
        return cls(register.rank, round_, sha256, holder)


@attrs.frozen
class Record:
    """One member's statement at one sequence."""

    writer: bytes
    sequence: int
    stamp: Timestamp
    """When it was made, by its writer's clock: for display, and to break ties."""
    member: MemberInfo | None
    progress: Progress | None
    body: bytes = attrs.field(init=False, repr=False)
    """Canonical encoding: what digests cover."""

    def __attrs_post_init__(self) -> None:
        body = canonical(self.to_wire())
        if len(body) > MAX_RECORD_BYTES:
            raise StateTooLarge(
                f"a member's record takes {len(body)} bytes, at most {MAX_RECORD_BYTES} fit",
                hint="announce fewer or shorter addresses",
            )
        object.__setattr__(self, "body", body)

    @property
    def rank(self) -> tuple[int, int, int, bytes]:
        """Which of two records of one writer holds: the one with the higher rank."""
        return (self.sequence, self.stamp.physical_ms, self.stamp.counter, self.body)

    def to_wire(self) -> Wire:
        """Plain builtins; `from_wire` takes them back."""
        return [
            self.writer,
            self.sequence,
            self.stamp.physical_ms,
            self.stamp.counter,
            None if self.member is None else self.member.to_wire(),
            None if self.progress is None else self.progress.to_wire(),
        ]

    @classmethod
    def from_wire(cls, untrusted: Wire) -> "Record":
        """Raises: CrdtError."""
        row = as_row(untrusted, "record", length=6)
        writer = as_bytes(row[0], "writer", least=1, most=32)
        sequence = as_int(row[1], "sequence", low=1)
        stamp = Timestamp.from_wire([row[2], row[3], writer])
        member = None if row[4] is None else MemberInfo.from_wire(row[4])
        progress = None if row[5] is None else Progress.from_wire(row[5])
        return cls(writer, sequence, stamp, member, progress)
